"""``python -m rlsparse.dashboard``: see ``rlsparse.tracking.dashboard``."""

from rlsparse.tracking.dashboard import main

if __name__ == "__main__":
    main()
