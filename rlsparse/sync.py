"""``python -m rlsparse.sync``: see ``rlsparse.tracking.sync``."""

from rlsparse.tracking.sync import main

if __name__ == "__main__":
    main()
