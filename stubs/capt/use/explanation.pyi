from trainers.capt.use.explanation import *
