"""The commands; ``train_net.py``, ``demo/`` and ``tools/`` call them."""
