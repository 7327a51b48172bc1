"""The plugin under its installed name: ``capt`` is ``trainers.capt``, with the same types."""

from trainers.capt import *
