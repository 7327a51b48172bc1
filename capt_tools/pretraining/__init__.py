"""Parts of pretrain_clip.py."""
