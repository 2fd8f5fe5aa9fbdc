"""What options of TRL, transformers, LLaMA-Factory, axolotl and scripts lead to."""

import dataclasses

import pytest
import transformers
import trl
from support.command_line import refused, run
from trl.experimental import cpo, orpo

from dpo_lightning.config.option_table import read_options
from dpo_lightning.config.unknown_options import UnknownOption, suggest, translate
from dpo_lightning.foreign_names import option_names, read_names, translate_command, translate_option

KNOWN = read_options().list_keys("fit")
LEADS = {
    "model.policy.path": "model_name model_name_or_path base_model pretrained_model_name_or_path adapter_name_or_path",
    "model.policy.dtype": "torch_dtype dtype",
    "model.policy.attention": "attn_implementation flash_attn flash_attention",
    "model.policy.gradient_checkpointing": "gradient_checkpointing use_gradient_checkpointing activation_checkpointing",
    "model.policy.compile": "torch_compile",
    "model.policy.router_aux_loss_coef": "router_aux_loss_coef moe_aux_loss_coef",
    "model.policy.lora.r": "use_lora use_peft lora_r lora_rank finetuning_type adapter",
    "model.policy.lora.lora_alpha": "lora_alpha",
    "model.policy.lora.lora_dropout": "lora_dropout",
    "model.policy.lora.target_modules": "lora_target lora_target_modules lora_target_linear",
    "model.policy.lora.modules_to_save": "lora_modules_to_save additional_target",
    "model.policy.lora.use_rslora": "use_rslora peft_use_rslora",
    "model.policy.lora.use_dora": "use_dora peft_use_dora",
    "model.policy.lora.init_lora_weights": "pissa_init peft_init_lora_weights",
    "model.policy.quantization.bits": "load_in_4bit load_in_8bit use_quantization quantization_bit qlora bits",
    "model.policy.quantization.quant_type": "bnb_4bit_quant_type quantization_type",
    "model.policy.quantization.double_quant": "use_bnb_nested_quant bnb_4bit_use_double_quant double_quantization",
    "model.policy.quantization.compute_dtype": "bnb_4bit_compute_dtype compute_dtype",
    "model": "stage",
    "model.loss": "loss_type pref_loss rl use_weighting loss_weights rpo_alpha pref_ftx",
    "model.loss.beta": "beta pref_beta dpo_beta",
    "model.loss.label_smoothing": "label_smoothing dpo_label_smoothing",
    "model.loss.gamma": "simpo_gamma",
    "model.loss.nll_weight": "cpo_alpha",
    "model.loss.alpha": "ld_alpha",
    "model.loss.tau": "discopop_tau",
    "model.loss.divergence": "f_divergence_type",
    "model.loss.divergence.alpha": "f_alpha_divergence_coef",
    "model.loss.desirable_weight": "desirable_weight kto_chosen_weight",
    "model.loss.undesirable_weight": "undesirable_weight kto_rejected_weight",
    "model.reference": "precompute_ref_log_probs sync_ref_model reference_free use_peft_for_reference",
    "model.reference.path": "ref_model ref_model_name_or_path ref_model_adapters",
    "model.reference.alpha": "ref_model_mixup_alpha",
    "model.reference.every": "ref_model_sync_steps",
    "model.learning_rate": "lr learning_rate",
    "model.optimizer": "optim optimizer",
    "model.optimizer.weight_decay": "weight_decay",
    "model.optimizer.betas": "adam_beta1 adam_beta2",
    "model.optimizer.eps": "adam_epsilon epsilon",
    "model.lr_scheduler": "lr_scheduler_type lr_scheduler lr_scheduler_kwargs",
    "model.lr_scheduler.warmup_steps": "warmup_steps num_warmup_steps",
    "model.lr_scheduler.warmup_ratio": "warmup_ratio",
    "data.train": "dataset dataset_name dataset_path dataset_dir train_file datasets data_path dataset_train_split",
    "data.eval": "eval_dataset validation_file test_datasets eval_data",
    "data.max_length": "max_length max_seq_length cutoff_len sequence_len max_prompt_length model_max_length",
    "data.overlong": "truncation_mode",
    "data.batch_size": "per_device_train_batch_size per_device_eval_batch_size micro_batch_size batch_size",
    "data.max_tokens": "auto_find_batch_size",
    "data.chat_template": "chat_template template chat_template_path",
    "data.limit_rows": "max_samples max_train_samples",
    "data.collator": "packing sample_packing neat_packing padding_free pad_to_sequence_len group_by_length",
    "data.collator.pad_to_multiple_of": "pad_to_multiple_of",
    "data.num_workers": "dataloader_num_workers",
    "data.cache": "dataset_prepared_path tokenized_path",
    "data.shuffle": "shuffle_dataset disable_shuffling shuffle_merged_datasets curriculum_sampling",
    "data.columns": "dataset_text_field",
    "data.format": "dataset_type datasets.type",
    "trainer.max_epochs": "num_epochs num_train_epochs epochs",
    "trainer.max_steps": "max_steps",
    "trainer.accumulate_grad_batches": "gradient_accumulation_steps",
    "trainer.gradient_clip_val": "max_grad_norm gradient_clipping",
    "trainer.precision": "fp16 bf16 mixed_precision pure_bf16",
    "trainer.accelerator": "use_cpu no_cuda",
    "trainer.devices": "gpus n_gpu num_processes",
    "trainer.num_nodes": "nnodes num_machines",
    "trainer.strategy": "deepspeed fsdp fsdp_config fsdp_cpu_ram_efficient_loading",
    "trainer.log_every_n_steps": "logging_steps",
    "trainer.logger": "report_to wandb_project run_name",
    "trainer.val_check_interval": "eval_steps eval_strategy evals_per_epoch",
    "trainer.callbacks": "save_steps save_strategy early_stopping_patience saves_per_epoch",
    "final": "load_best_model_at_end",
    "trainer.enable_progress_bar": "disable_tqdm",
    "trainer.deterministic": "full_determinism",
    "output_dir": "output_dir",
    "fresh": "overwrite_output_dir",
    "seed_everything": "seed data_seed",
    "ckpt_path": "resume_from_checkpoint",
    "": (
        "trust_remote_code model_revision tokenizer_type pad_token lora_bias lora_task_type val_size val_set_size "
        "train_on_inputs completion_only_loss push_to_hub hub_model_id plot_loss do_train do_eval local_rank tf32 "
        "use_liger_kernel neftune_noise_alpha disable_dropout dataloader_pin_memory logging_dir accelerator_config "
        "eval_delay model_type label_names remove_unused_columns ddp_timeout ddp_backend ddp_bucket_cap_mb "
        "reward_model_path generation_config cache_implementation num_ppo_epochs response_length max_step_length "
        "split_special_tokens add_special_tokens skip_special_tokens export_quantization_bit galore_target use_mca "
        "ppo_buffer_size use_ray ray_num_workers relora train_on_eos trl datasets.ds_type padding_value tools "
        "label_pad_token_id use_liger_loss model_adapter_name ref_model_init_kwargs use_logits_to_keep use_vllm "
        "num_generations base_model_attribute_name vllm_gpu_memory_utilization freeze_extra_modules lora_o_kernel "
        "dataset_num_proc preprocessing_num_workers overwrite_cache streaming writer_batch_size momentum "
        "streaming_multipack_buffer "
        "liger_rope sequence_parallel_degree max_memory plugins chat_template_kwargs roles_to_train"
    ),
}
CASES = [(name, key) for key, names in LEADS.items() for name in names.split()]
CONFIGS = [transformers.TrainingArguments, trl.ModelConfig, trl.ScriptArguments, cpo.CPOConfig, orpo.ORPOConfig]
CONFIGS += [trl.DPOConfig, trl.SFTConfig, trl.KTOConfig, trl.RewardConfig, trl.GRPOConfig, trl.RLOOConfig]
FIELDS = {each.name for config in CONFIGS for each in dataclasses.fields(config) if not each.name.startswith("_")}
UNSUPPORTED = read_names()["unsupported_methods"]["note"]


def test_the_table_is_long():
    assert len(CASES) > 180


@pytest.mark.parametrize(("name", "key"), CASES)
def test_a_name_leads_to_its_key(name, key):
    """As a flag by itself, with dashes, and in a section of a YAML file; or there is a reason that there is none."""
    for written in (name, name.replace("_", "-"), f"training.{name}"):
        found = translate(UnknownOption(written), KNOWN)
        assert found is not None, written
        assert found.key == key, written
        assert found.key or found.note


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_option_of_trl_and_transformers_has_an_answer(name):
    """One of the table, and none by spelling."""
    assert name in KNOWN or translate(UnknownOption(name), KNOWN), f"{name} is in no row of foreign_names.yaml"


@pytest.mark.parametrize(
    ("name", "given", "written"),
    [
        ("load_in_4bit", "true", "--model.policy.quantization.bits 4"),
        ("load_in_8bit", "true", "--model.policy.quantization.bits 8"),
        ("load_in_8bit", "false", "leave it out: it is off if left out"),
        ("quantization_bit", "8", "--model.policy.quantization.bits 8"),
        ("quantization_bit", "4", "--model.policy.quantization.bits 4"),
        ("quantization_bit", "3", "leave it out: weights are quantized to 4 or 8 bits"),
        ("quantization_method", "gptq", "leave it out: bitsandbytes"),
        ("use_lora", "", "--model.policy.lora.r 16"),
        ("finetuning_type", "lora", "--model.policy.lora.r 16"),
        ("finetuning_type", "full", "leave it out: without an option of lora all weights are trained"),
        ("finetuning_type", "freeze", "leave it out: single layers are not trained here"),
        ("adapter", "qlora", "--model.policy.quantization.bits 4 (and --model.policy.lora.r 16)"),
        ("lora_target", "all", "--model.policy.lora.target_modules all-linear"),
        ("lora_target", "q_proj,v_proj", "--model.policy.lora.target_modules [q_proj,v_proj]"),
        ("lora_target_modules", "[q_proj, v_proj]", "--model.policy.lora.target_modules [q_proj, v_proj]"),
        ("additional_target", "lm_head", "--model.policy.lora.modules_to_save [lm_head]"),
        ("adam_beta1", "0.95", "--model.optimizer.betas [0.95,0.999] (both"),
        ("adam_beta2", "0.95", "--model.optimizer.betas [0.9,0.95] (both"),
        ("adam_beta2", "", "--model.optimizer.betas (both"),
        ("adam_beta1", "0.9", "leave it out: 0.9 is the default"),
        ("packing", "false", "--data.collator Padded"),
        ("disable_tqdm", "true", "--trainer.enable_progress_bar false"),
        ("disable_tqdm", "false", "--trainer.enable_progress_bar true"),
        ("disable_gradient_checkpointing", "", "--model.policy.gradient_checkpointing false"),
        ("disable_shuffling", "True", "--data.shuffle false"),
        ("shuffle_dataset", "false", "--data.shuffle"),
        ("warmup_ratio", "0.1", "--model.lr_scheduler.warmup_ratio (with --model.lr_scheduler CosineWithWarmup, "),
        ("warmup_steps", "100", "--model.lr_scheduler.warmup_steps (with --model.lr_scheduler CosineWithWarmup, "),
        ("warmup_steps", "0.1", "--model.lr_scheduler.warmup_ratio"),
        ("warmup_steps", "4e-2", "--model.lr_scheduler.warmup_ratio"),
        ("warmup_steps", "0", "--model.lr_scheduler.warmup_steps"),
        ("epsilon", "1e-8", "--model.optimizer.eps (of Adam"),
        ("special_tokens", "neutralize", "--data.special_tokens neutralize"),
        ("special_tokens", "refuse", "--data.special_tokens refuse"),
        ("special_tokens", "<eos>", "leave it out: the tokenizer in the model"),
        ("lr_scheduler_type", "constant", "leave it out: the learning rate is constant"),
        ("stage", "rm", f"leave it out: {UNSUPPORTED}"),
        ("stage", "ppo", f"leave it out: {UNSUPPORTED}"),
        ("rl", "grpo", f"leave it out: {UNSUPPORTED}"),
        ("rl", "kto", "--model.loss KTOLoss (with --model KTOModule"),
        ("report_to", "none", "--trainer.logger false"),
        ("save_strategy", "no", "--trainer.enable_checkpointing false"),
        ("disable_checkpointing", "true", "--trainer.enable_checkpointing false"),
        ("save_strategy", "steps", "--trainer.callbacks (RunCheckpoints"),
        ("eval_strategy", "no", "leave it out: without data.eval nothing is evaluated"),
        ("eval_strategy", "epoch", "--trainer.val_check_interval 1.0"),
        ("bf16", "false", "leave it out: trainer.precision alone says it"),
        ("flash_attn", "fa2", "--model.policy.attention flash_attention_2"),
        ("resume_from_checkpoint", "true", "leave it out: the same command continues"),
        ("train_sampling_strategy", "sequential", "--data.shuffle false"),
        ("bf16", "true", "--trainer.precision bf16-mixed"),
        ("fp16", "True", "--trainer.precision 16-mixed"),
        ("loss_type", "ipo", "--model.loss IPOLoss"),
        ("pref_loss", "sigmoid", "--model.loss DPOLoss"),
        ("optim", "paged_adamw_8bit", "--model.optimizer bitsandbytes.optim.PagedAdamW8bit"),
        ("lr_scheduler_type", "cosine", "--model.lr_scheduler CosineWithWarmup"),
        ("report_to", "wandb", "--trainer.logger WandbLogger"),
        ("stage", "sft", "--model SFTModule"),
        ("f_divergence_type", "js_divergence", "--model.loss.divergence JensenShannon"),
        ("deepspeed", "ds_z3.json", "--trainer.strategy fsdp2"),
        ("num_epochs", "3", "--trainer.max_epochs"),
        ("trainer.max_epochs", "3", "--trainer.max_epochs 3"),
    ],
)
def test_a_value_with_another_meaning_is_led_on_as_well(name, given, written):
    assert suggest(UnknownOption(name, given), KNOWN).startswith(written)


def test_names_are_written_as_they_are_looked_up():
    names = option_names()
    assert [name for name in names if name != name.lower() or "-" in name] == []
    assert [name for name in names if name in KNOWN and translate_option(name).key != name] == []
    assert [name for name, found in names.items() if len(found.note) > 90 or (found.value and not found.key)] == []
    cases = {words: case for row in read_names()["options"] for words, case in row.get("cases", {}).items()}
    assert [words for words in cases if words != words.lower()] == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    {
        "train": "fit --config configs/dpo.yaml",
        "dpo": "fit --config configs/dpo.yaml",
        "src/train_dpo.py": "fit --config configs/dpo.yaml",
        "sft": "fit --config configs/sft.yaml",
        "kto": "fit --config configs/kto.yaml",
        "merge": "export --model",
        "merge-lora": "export --model",
        "export-model": "export --model",
        "trainer": "fit --config",
        "eval": "evaluate --model",
        "report": "evaluate --model",
        "scripts/evaluate_model.py": "evaluate --model",
        "chat": "infer --model",
        "generate": "infer --model",
        "inference.py": "infer --model",
        "preprocess": "check-data",
        "env": "doctor",
        "download": "fetch-model",
    }.items(),
)
def test_a_foreign_command_leads_to_ours(typed, meant):
    assert translate_command(typed).startswith(meant)
    refused(run(typed, "--model_name", "x"), 64, f"there is no command {typed!r}", f"python -m dpo_lightning {meant}")


@pytest.mark.parametrize("typed", ["ppo", "grpo", "rm", "reward", "src/train_reward.py", "train-ppo"])
def test_a_command_that_trains_in_another_way_is_said_not_to_exist(typed):
    refused(run(typed, "--model_name", "x"), 64, f"there is no command {typed!r}\nfix: {UNSUPPORTED}; python -m")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.lr_scheduler", "cosine"], ("--model.lr_scheduler CosineWithWarmup",)),
        (["--model.lr_scheduler", "cosin"], ("did you mean CosineWithWarmup?",)),
        (["--model.lr_scheduler", "zzzz"], ("--model.lr_scheduler takes CosineWithWarmup", "CosineAnnealingLR")),
        (["--model.optimizer", "adamw_torch"], ("--model.optimizer torch.optim.AdamW",)),
        (["--model.loss", "sigmoid"], ("--model.loss DPOLoss",)),
        (["--model.loss", "simpo"], ("--model.loss SimPOLoss",)),
        (["--model.reference", "tr_dpo"], ("--model.reference Synced",)),
        (["--model", "sft"], ("--model SFTModule",)),
        (["--model", "rm"], ("--model takes DPOModule", UNSUPPORTED)),
        (["--model.loss", "ppo"], ("--model.loss takes DPOLoss", UNSUPPORTED)),
        (["--trainer.logger", "wandb"], ("--trainer.logger WandbLogger",)),
        (["--trainer.precision", "fp16"], ("--trainer.precision 16-mixed",)),
    ],
)
def test_a_class_of_another_name_leads_to_the_right_one(bench, flags, said):
    """In its own place only: `cosine` was taken for the reference `Synced`."""
    refused(bench.fit(*flags), 64, f"at {flags[0][2:]}", *said)
