from trainers.capt.bank.prompt_library import *
