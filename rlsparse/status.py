"""``python -m rlsparse.status``: see ``rlsparse.sweep.status``."""

from rlsparse.sweep.status import main

if __name__ == "__main__":
    main()
