from trainers.capt.run.pictures import *
