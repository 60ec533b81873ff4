"""``python -m rlsparse.warm_start``: see ``rlsparse.warm_start.run``."""

from rlsparse.warm_start.run import main

if __name__ == "__main__":
    main()
