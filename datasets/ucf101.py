"""UCF101 (Soomro et al., 2012): 101 actions, the middle frame of each video."""

import random
import re

from dassl.data.datasets import DATASET_REGISTRY

from .few_shot import SPLIT_SEED, FewShotDataset
from .splits import Items, make_datum


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    """CoOp's UCF101: 7,639 train, 1,898 val (20 % of the first official training list), 3,783 test images."""

    dataset_dir = "ucf101"
    image_folder = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"

    def read_data(self) -> tuple[Items, Items, Items]:
        numbered = (line.split() for line in self.read_lines("ucfTrainTestlist", "classInd.txt"))
        label_of = {action: int(number) - 1 for number, action in numbered}
        train, val = self.split_trainval(self._read_list("trainlist01.txt", label_of), rng=random.Random(SPLIT_SEED))
        return train, val, self._read_list("testlist01.txt", label_of)

    def _read_list(self, name: str, label_of: dict[str, int]) -> Items:
        """Read lines ``YoYo/v_YoYo_g08_c01.avi 101``; the test list has no number."""
        items = []
        for line in self.read_lines("ucfTrainTestlist", name):
            action, video = line.split()[0].split("/")
            renamed = "_".join(re.findall("[A-Z][^A-Z]*", action))  # YoYo -> Yo_Yo, the frames' folder too
            frame = f"{self.image_dir}/{renamed}/{video.removesuffix('.avi')}.jpg"
            items.append(make_datum(frame, label_of[action], renamed))
        return items
