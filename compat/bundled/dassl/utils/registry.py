"""Name -> class table with clear errors."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

__all__ = ["Registry"]

Entry = TypeVar("Entry", bound=Callable[..., Any])
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Registry(Generic[Entry]):
    """Keeps classes or functions under their ``__name__``, in order of registration.

    Example:
        >>> SHAPES = Registry("SHAPE")
        >>> @SHAPES.register()
        ... class Circle: ...
        >>> SHAPES.get("Circle").__name__, SHAPES.registered_names()
        ('Circle', ['Circle'])
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._obj_map: dict[str, Any] = {}

    def _add(self, name: str, obj: Callable[..., Any], force: bool) -> None:
        if name in self._obj_map and not force:
            raise KeyError(f'An object named "{name}" was already registered in "{self._name}" registry')
        self._obj_map[name] = obj

    @overload
    def register(self, obj: None = None, force: bool = False) -> Callable[[Decorated], Decorated]: ...

    @overload
    def register(self, obj: Callable[..., Any], force: bool = False) -> None: ...

    def register(
        self, obj: Callable[..., Any] | None = None, force: bool = False
    ) -> Callable[[Decorated], Decorated] | None:
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

        def decorate(decorated: Decorated) -> Decorated:
            self._add(decorated.__name__, decorated, force)
            return decorated

        return decorate

    def get(self, name: str) -> Entry:
        """Return the object registered as ``name``; KeyError if there is none."""
        if name not in self._obj_map:
            raise KeyError(f'Object name "{name}" does not exist in "{self._name}" registry')
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """Names in order of registration."""
        return list(self._obj_map)
