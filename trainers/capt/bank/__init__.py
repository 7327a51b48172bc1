"""The Confusion Bank: what the base model confuses, who judges it, its files, and what is said of pairs of classes."""
