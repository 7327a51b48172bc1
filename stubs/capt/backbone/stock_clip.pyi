from trainers.capt.backbone.stock_clip import *
