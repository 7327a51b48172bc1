from trainers.capt.run.files import *
