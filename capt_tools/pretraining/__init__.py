"""Parts of ``capt pretrain``: a small CLIP, its pictures, its training, and what it can do without any."""
