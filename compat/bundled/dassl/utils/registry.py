"""Name -> class table with clear errors."""

__all__ = ["Registry"]


class Registry:
    """Keeps classes or functions under their ``__name__``, in order of registration.

    Example:
        >>> SHAPES = Registry("SHAPE")
        >>> @SHAPES.register()
        ... class Circle: ...
        >>> SHAPES.get("Circle").__name__, SHAPES.registered_names()
        ('Circle', ['Circle'])
    """

    def __init__(self, name):
        self._name = name
        self._obj_map = {}

    def _add(self, name, obj, force):
        if name in self._obj_map and not force:
            raise KeyError(f'An object named "{name}" was already registered in "{self._name}" registry')
        self._obj_map[name] = obj

    def register(self, obj=None, force=False):
        """Register ``obj``, or return a decorator that registers what it decorates.

        Args:
            obj: Class or function; without one a decorator is returned.
            force: Replace an object that has the same name.

        Raises:
            KeyError: The name is taken and ``force`` is False.
        """
        if obj is not None:
            self._add(obj.__name__, obj, force)
            return None

        def decorate(decorated):
            self._add(decorated.__name__, decorated, force)
            return decorated

        return decorate

    def get(self, name):
        """Return the object registered as ``name``; KeyError if there is none."""
        if name not in self._obj_map:
            raise KeyError(f'Object name "{name}" does not exist in "{self._name}" registry')
        return self._obj_map[name]

    def registered_names(self):
        """Names in order of registration."""
        return list(self._obj_map)
