from trainers.capt.bank.confusion_bank import *
