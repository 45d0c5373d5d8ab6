"""Import what anyone needs who loads this model with transformers, and say when it is there.

python -m bench.imports MODEL_DIR
"""

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import torch  # noqa: F401
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

if __name__ == "__main__":
    MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.from_pretrained(sys.argv[1]))]
    print(json.dumps({"first_step_at": time.time()}))
