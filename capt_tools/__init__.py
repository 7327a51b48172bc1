"""The tools around the trainers, behind the command line ``capt``; scripts/*.py are their faces in a checkout.

Importing the package makes the checkout's own names importable: ``trainers``, ``datasets``, ``compat``, ``train``,
``parse_test_res``, and the plugin alone as ``capt``, which needs no Dassl.
"""

from .house import enter

enter()
