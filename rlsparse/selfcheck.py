"""``python -m rlsparse.selfcheck``: see ``rlsparse.execution.self_check.command``."""

from rlsparse.execution.self_check.command import main

if __name__ == "__main__":
    main()
