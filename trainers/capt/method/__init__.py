"""The method, in the paper's order: mined pairs, mined samples, experts, losses, and what is chosen before training."""
