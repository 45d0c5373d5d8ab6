"""Keys of other tools that have no counterpart here, under the reason for it."""

OWN_TEMPLATE = "the model's own chat template is used"
FASTEST = "the fastest layers that give the same result are chosen"
NEW_ADAPTER = "to train a new adapter on top of this one, merge this one into the base first"
SHARDING = "a model is not spread over several devices in this version"
TRACKING = "trackers are not available in this version: metrics.jsonl has every step"
UPLOAD = "nothing is uploaded: export the adapter and upload that"
PREPARED = "tokenized rows are cached on their own"
FROM_MODEL = "found from the model"

REASONS: dict[str, tuple[str, ...]] = {
    OWN_TEMPLATE: (
        "default_system", "special_tokens",
        "added_tokens_overrides", "tokenizer_type", "tokenizer_config", "model_type",
        "tokenizer_use_fast", "tokenizer_legacy", "use_fast_tokenizer", "resize_vocab",
        "resize_token_embeddings_to_32x", "eos_token", "pad_token",
        "train_on_eos", "train_on_eot", "eot_tokens", "tool_format",
    ),
    FASTEST: (
        "flash_attention", "flash_attn", "attn_implementation", "sdp_attention",
        "xformers_attention", "s2_attention", "eager_attention", "use_unsloth",
        "enable_liger_kernel", "use_liger_kernel", "use_liger", "liger_rope", "liger_rms_norm",
        "liger_glu_activation", "liger_layer_norm", "liger_fused_linear_cross_entropy",
        "liger_cross_entropy", "torch_compile", "tf32", "compile", "plugins", "lora_mlp_kernel",
        "lora_qkv_kernel", "lora_o_kernel", "flash_optimum", "use_unsloth_gc",
        "flash_attn_fuse_mlp", "unsloth_cross_entropy_loss", "cut_cross_entropy",
        "pad_to_sequence_len", "group_by_length", "eval_sample_packing",
        "eval_packing", "sample_packing_eff_est", "sample_packing_group_size",
        "sample_packing_bin_size", "gradient_checkpointing_kwargs", "activation_offloading",
        "fp16_full_eval", "bf16_full_eval", "upcast_layernorm", "upcast_lmhead_output",
        "neftune_fused", "dataset_kwargs", "use_cache", "max_packed_sequence_len",
        "train_sampling_strategy", "experimental_skip_move_to_device",
        "flash_attn_cross_entropy", "flash_attn_rms_norm", "flash_attn_fuse_qkv",
        "activation_checkpointing_kwargs", "torch_compile_backend", "torch_compile_mode",
        "liger_kernel_config", "torch_empty_cache_steps", "auto_find_batch_size", "use_cpu",
        "skip_memory_metrics", "length_column_name", "pad_to_multiple_of", "model_init_kwargs",
        "enable_jit_checkpoint", "env",
    ),
    SHARDING: (
        "deepspeed", "fsdp", "fsdp_config", "fsdp_version", "ddp_timeout", "ddp_backend",
        "device_map", "tensor_parallel_size", "context_parallel_size", "dp_shard_size",
        "ddp_find_unused_parameters", "local_rank", "sequence_parallel_degree", "max_memory",
        "low_cpu_mem_usage", "lora_on_cpu", "world_size", "ddp_bucket_cap_mb", "parallelism_config",
        "ray_num_workers",
        "ddp_broadcast_buffers", "ddp_static_graph", "accelerator_config", "log_on_each_node",
        "save_on_each_node", "num_processes", "ignore_bias_buffers",
    ),
    TRACKING: (
        "wandb_project", "wandb_entity", "wandb_watch", "wandb_name", "wandb_log_model",
        "wandb_run_id", "wandb_mode", "run_name", "mlflow_tracking_uri", "mlflow_experiment_name",
        "hf_mlflow_log_artifacts", "comet_project_name", "comet_workspace", "use_wandb",
        "enable_wandb", "enable_tensorboard", "use_tensorboard", "use_comet", "use_mlflow",
        "swanlab_project", "use_swanlab", "tensorboard_dir", "logging_dir", "logging_first_step",
        "plot_loss", "log_level", "logging", "wandb_token", "include_tokens_per_second",
        "include_num_input_tokens_seen", "include_tkps", "debug", "hf_token", "project",
        "trackio_space_id", "disable_tqdm", "log_completions",
        "include_effective_tokens_per_second",
        "logging_nan_inf_filter", "log_level_replica", "trackio_bucket_id",
        "trackio_static_space_id", "include_for_metrics", "batch_eval_metrics",
    ),
    UPLOAD: (
        "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo",
        "push_model", "push_gguf", "save_gguf", "save_model", "save_method", "quantization",
        "repo_id", "hf_use_auth_token", "export_dir", "push_dataset_to_hub",
        "save_only_model", "hub_revision",
        "hub_always_push",
    ),
    PREPARED: (
        "dataset_prepared_path", "preprocessing_num_workers", "dataset_num_proc", "overwrite_cache",
        "tokenized_path", "dataloader_num_workers", "dataset_processes", "dataloader_pin_memory",
        "dataloader_prefetch_factor", "streaming", "buffer_size", "shuffle_merged_datasets",
        "cache_dir", "dataset_streaming", "remove_unused_columns", "dataloader_drop_last",
        "preprocessing_batch_size", "shuffle_buffer_size", "skip_prepare_dataset",
        "dataset_keep_in_memory", "media_dir", "dataset_shards_num",
        "dataloader_persistent_workers", "dataloader_multiprocessing_context",
        "dataloader_in_order",
    ),
    NEW_ADAPTER: ("create_new_adapter",),
    FROM_MODEL: (
        "fan_in_fan_out", "layers_pattern", "lora_fan_in_fan_out", "is_llama_derived_model",
        "is_mistral_derived_model", "is_falcon_derived_model", "rope_scaling", "base_model_config",
        "peft_version", "revision", "model_revision", "task_type", "auto_mapping", "lora_task_type",
        "inference_mode", "flash_attn_version", "overrides_of_model_config", "ensure_weight_tying",
        "label_names", "runtime_config",
    ),
    "not needed: a run writes no file over another, and continues with --resume": (
        "overwrite_output_dir", "resume_from_checkpoint", "auto_resume_from_checkpoints",
        "save_safetensors", "save_first_step", "load_best_model_at_end", "resume_training",
        "save_compressed", "ignore_data_skip", "restore_callback_states_from_checkpoint",
    ),
    "it follows from the method and the data": (
        "do_train", "do_eval", "do_predict", "strict", "predict_with_generate", "is_preprocess",
        "prediction_loss_only", "metric_for_best_model", "greater_is_better", "eval_on_start",
        "per_device_eval_batch_size", "eval_batch_size", "eval_accumulation_steps",
        "eval_table_size", "eval_max_new_tokens", "do_causal_lm_eval", "do_bench_eval",
        "eval_causal_lm_metrics", "compute_accuracy", "logprob_measure", "eval_delay",
        "eval_do_concat_batches", "eval_use_gather_object",
    ),
    "the scale, the rates or the optimizer are not adjustable in this way here": (
        "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "lr_scheduler_kwargs",
        "cosine_min_lr_ratio", "cosine_constant_lr_ratio", "lr_quadratic_warmup", "embedding_lr",
        "embedding_learning_rate", "embedding_lr_scale", "lr_groups", "optim_target_modules",
        "relora_steps", "relora_warmup_steps", "adam_epsilon2",
    ),
    "it changes what is trained in a way that is not available here": (
        "neftune_noise_alpha", "noisy_embedding_alpha", "label_smoothing_factor", "bias",
        "lora_bias", "exclude_modules", "target_parameters", "trainable_token_indices",
        "layer_replication", "megatron_config", "megatron_core", "corda_config", "eva_config",
        "use_qalora", "qalora_group_size", "alora_invocation_tokens", "arrow_config",
        "lora_ga_config", "use_galore", "use_badam", "use_apollo", "use_llama_pro",
        "freeze_trainable_layers", "mixture_of_depths", "moe_aux_loss_coef", "unfrozen_parameters",
        "shift_attn", "router_aux_loss_coef", "loss_type", "use_dft_loss", "use_asft_loss",
        "aux_loss_coef", "use_muon", "use_adam_mini", "peft_layer_replication", "velora_config",
        "bdlora_config", "use_bdlora", "freeze_vision_tower", "freeze_multi_modal_projector",
        "image_max_pixels", "video_max_pixels", "monteclora_config", "dft_alpha",
        "average_tokens_across_devices", "use_eaft_loss",
        "lora_target_parameters", "kasa_config", "pissa_iter", "pissa_convert", "use_loftq",
        "vision_all_linear", "finetune_vision_layers", "finetune_language_layers",
        "finetune_attention_modules", "finetune_mlp_modules", "freeze_trainable_modules",
    ),
    "all rows are used: cut the file instead": (
        "max_samples", "max_eval_samples", "max_train_samples",
    ),
    "rows of several sources are mixed by weight: data.train takes a list with weights": (
        "mix_strategy", "interleave_probs", "dataset_mixer", "dataset_exact_dedup",
    ),
    "the order of the rows follows from seed": (
        "data_seed", "shuffle", "full_determinism",
        "shuffle_dataset",
    ),
    "rows longer than data.max_length follow data.too_long": (
        "excess_length_strategy", "truncation_mode", "min_sample_len", "max_prompt_length",
        "truncation_side", "ignore_pad_token_for_loss",
    ),
    "data.train_on says which messages are trained: assistant, last or all": (
        "roles_to_train",
    ),
    "examples are packed whole and kept apart: data.packing only switches it on or off": (
        "packing_strategy",
    ),
    "it changes the speed alone: data.packing says how rows share a batch": (
        "padding_free",
    ),
}  # fmt: skip
