from trainers.capt.bank.exchange import *
