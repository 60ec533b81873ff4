"""``python -m rlsparse.evaluate``: see ``rlsparse.execution.evaluate_model``."""

from rlsparse.execution.evaluate_model import main

if __name__ == "__main__":
    main()
