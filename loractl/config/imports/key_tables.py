"""Every key of other tools that we know: what it becomes here, or the reason that it does not.

LLaMA-Factory, axolotl, TRL/transformers, unsloth and PEFT share most names, so one table serves
them all; `BY_TOOL` has what a name means in one of them only.
"""

from loractl.config.imports.reasons import REASONS
from loractl.config.imports.their_templates import (
    chat_template,
    llamafactory_template,
    template_file,
    template_variables,
    thinking,
)
from loractl.config.imports.values import (
    QUANTIZED,
    Translator,
    adapter,
    checkpointing,
    count,
    dtype,
    fixed,
    layers,
    names,
    no,
    number,
    only,
    optimizer,
    precision,
    same,
    schedule,
    share_of_rows,
    share_of_steps,
    start,
    switch,
    targets,
    text,
    tokens,
    trackers,
    warmup_steps,
    whole,
)

FROM_ROWS = "a number of steps depends on the number of rows: set {} to steps"

KEYS: dict[str, Translator] = {
    # the base model
    **dict.fromkeys(
        ("model_name_or_path", "base_model", "base_model_name_or_path", "model_name", "model"),
        text("model.name_or_path"),
    ),
    **dict.fromkeys(
        ("tokens", "add_tokens", "add_special_tokens", "new_special_tokens"), tokens
    ),
    "trust_remote_code": switch("model.trust_remote_code", True),
    **dict.fromkeys(("torch_dtype", "dtype", "infer_dtype", "precision"), dtype),
    **dict.fromkeys(("bf16", "bfloat16", "pure_bf16"), precision("bfloat16")),
    **dict.fromkeys(("fp16", "float16"), precision("float16")),
    **dict.fromkeys(
        ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"),
        no("products are computed in model.dtype, and codes are stored in bytes"),
    ),
    **dict.fromkeys(
        ("gptq", "quantization_config", "bnb_config_kwargs", "loftq_config"),
        no(QUANTIZED),
    ),
    # the method and the adapter
    "use_peft": switch("method", "lora", "full"),
    **dict.fromkeys(("use_dora", "peft_use_dora"), switch("method", "dora")),
    **dict.fromkeys(("use_rslora", "peft_use_rslora"), switch("lora.scaling", "rslora")),
    **dict.fromkeys(("init_lora_weights", "peft_init_lora_weights"), start),
    **dict.fromkeys(
        ("adapter_name_or_path", "lora_model_dir", "resume_adapter_file"), adapter
    ),
    "pissa_init": switch("lora.init", "pissa"),
    **dict.fromkeys(("r", "lora_r", "lora_rank"), whole("lora.rank")),
    "lora_alpha": number("lora.alpha"),
    "lora_dropout": number("lora.dropout"),
    **dict.fromkeys(("lora_target", "lora_target_modules", "target_modules"), targets),
    "lora_target_linear": switch("lora.target_modules", "all-linear"),
    **dict.fromkeys(
        ("modules_to_save", "lora_modules_to_save", "additional_target"),
        names("lora.modules_to_save"),
    ),
    **dict.fromkeys(("layers_to_transform", "peft_layers_to_transform"), layers),
    "rank_pattern": same("lora.rank_pattern"),
    "alpha_pattern": same("lora.alpha_pattern"),
    **dict.fromkeys(("loraplus_lr_ratio", "lora_plus_ratio"), number("train.lora_plus_ratio")),
    "loraplus_lr_embedding": no("the ratio applies to every adapter"),
    # the data
    **dict.fromkeys(
        ("max_length", "cutoff_len", "sequence_len", "max_seq_length", "max_seq_len"),
        whole("data.max_length"),
    ),
    **dict.fromkeys(
        ("packing", "sample_packing", "neat_packing", "packed", "multipack"),
        switch("data.packing", True, False),
    ),
    **dict.fromkeys(("val_size", "val_set_size", "test_split_size"), share_of_rows),
    **dict.fromkeys(("eval_dataset", "eval_data"), text("data.eval")),
    **dict.fromkeys(
        ("train_on_inputs", "train_on_prompt", "train_on_input"),
        switch("data.train_on", "all", "assistant"),
    ),
    **dict.fromkeys(
        ("train_on_completions", "train_on_responses_only", "completion_only_loss",
         "assistant_only_loss"),
        switch("data.train_on", "assistant", "all"),
    ),
    "mask_history": switch("data.train_on", "last"),
    "dataset_text_field": lambda value: (
        {} if value in (None, "text") else {"data.columns": {"text": value}}
    ),
    "chat_template": chat_template,
    "template": llamafactory_template,
    **dict.fromkeys(("chat_template_jinja", "chat_template_path"), template_file),
    "chat_template_kwargs": template_variables,
    "enable_thinking": thinking,
    # the training
    **dict.fromkeys(("num_train_epochs", "num_epochs", "epochs"), number("train.epochs")),
    "max_steps": count("train.steps"),
    **dict.fromkeys(
        ("per_device_train_batch_size", "micro_batch_size", "batch_size"),
        whole("train.batch_size"),
    ),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "grad_accumulation_steps"),
        whole("train.gradient_accumulation"),
    ),
    **dict.fromkeys(("learning_rate", "lr"), number("train.learning_rate")),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), schedule),
    "warmup_ratio": share_of_steps,
    **dict.fromkeys(("warmup_steps", "num_warmup_steps"), warmup_steps),
    **dict.fromkeys(("optim", "optimizer"), optimizer),
    "weight_decay": number("train.weight_decay"),
    **dict.fromkeys(
        ("max_grad_norm", "gradient_clipping", "clip_grad_norm"), number("train.max_grad_norm")
    ),
    **dict.fromkeys(
        ("gradient_checkpointing", "use_gradient_checkpointing", "activation_checkpointing"),
        checkpointing,
    ),
    "disable_gradient_checkpointing": switch("train.gradient_checkpointing", False),
    "eval_steps": count("train.eval_every"),
    "save_steps": count("train.save_every"),
    "save_total_limit": count("train.keep_checkpoints"),
    "logging_steps": count("train.log_every"),
    "early_stopping_patience": count("train.early_stopping"),
    "evals_per_epoch": no(FROM_ROWS.format("train.eval_every")),
    "saves_per_epoch": no(FROM_ROWS.format("train.save_every")),
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy"),
        only("steps", why=FROM_ROWS.format("train.eval_every")),
    ),
    "save_strategy": only("steps", why=FROM_ROWS.format("train.save_every")),
    "logging_strategy": only("steps", why="progress is counted in steps"),
    "task_type": only("causal_lm", why="every run here trains a causal language model"),
    "bias": no("biases are not trained"),
    # the run
    "output_dir": text("out"),
    **dict.fromkeys(("seed", "random_seed", "random_state"), whole("seed")),
    **dict.fromkeys(("report_to",), trackers),
}  # fmt: skip
KEYS |= {
    name: no(reason) for reason, listed in REASONS.items() for name in listed if name not in KEYS
}

ADALORA: dict[str, Translator] = {
    "init_r": whole("lora.adalora.initial_rank"),
    "target_r": whole("lora.adalora.target_rank"),
    "tinit": whole("lora.adalora.warmup_steps"),
    "tfinal": whole("lora.adalora.final_steps"),
    "deltaT": whole("lora.adalora.every"),
    "beta1": number("lora.adalora.beta1"),
    "beta2": number("lora.adalora.beta2"),
    "orth_reg_weight": number("lora.adalora.orthogonality"),
    "total_step": fixed("the run's own number of steps counts"),
    "r": fixed("adalora starts at init_r"),
    "lora_r": fixed("adalora starts at init_r"),
}
"""What a name means for PEFT's AdaLoRA."""
