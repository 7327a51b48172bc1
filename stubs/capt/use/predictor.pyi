from trainers.capt.use.predictor import *
