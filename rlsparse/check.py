"""``python -m rlsparse.check``: see ``rlsparse.execution.model_check``."""

from rlsparse.execution.model_check import main

if __name__ == "__main__":
    main()
