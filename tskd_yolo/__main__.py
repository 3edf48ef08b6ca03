"""``python -m tskd_yolo`` is ``tskd-yolo``."""

import sys

from tskd_yolo.cli import main

if __name__ == "__main__":
    sys.exit(main())
