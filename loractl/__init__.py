"""Fine-tune language models with LoRA from one YAML file."""

__version__ = "0.1.0"
