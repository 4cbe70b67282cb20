"""The commands of ``hypernet-d2``, which ``train_net.py``, ``demo/`` and ``tools/`` call, too."""
