"""The part of Dassl that CoOp-style code uses, written independently.

Found by ``import dassl`` only where no Dassl is installed (see ``compat``). Names, messages, log lines, random
sequences and file layouts follow Dassl 0.6.3, whose version number is therefore given; what differs on purpose is
listed in compat/README.md.
"""

__version__ = "0.6.3"
__author__ = "CAPT developers"
__homepage__ = "https://github.com/KaiyangZhou/Dassl.pytorch"
