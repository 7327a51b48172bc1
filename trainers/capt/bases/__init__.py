"""The frozen model that CAPT stands on: one module a kind of base learner, behind one interface."""
