"""Every setting of sesttune, with its type, its default and what it does.

The tree mirrors that of the public `state tx train` (`data.kwargs.*`, `model.kwargs.*`,
`training.*`); a public key that is not here is refused.
Validated once by `sesttune.config.load`; everything behind it trusts the values.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataKwargs:
    toml_config_path: str | None = None
    """cell-load split file (TOML); none runs the bundled demo in `sweep`."""
    perturbation_features_file: str | None = None
    """`.pt` file: dict of perturbation name -> feature vector (ESM2: 5,120 floats)."""
    batch_col: str = "batch_var"
    pert_col: str = "target_gene"
    cell_type_key: str = "cell_type"
    """These three name columns of obs, in every file."""
    control_pert: str = "non-targeting"
    """What control cells have in `pert_col`."""
    num_workers: int = 8
    """Threads that read the store ahead of the training loop; 0 reads in the loop."""
    store_location: str = "auto"
    """Where cells lie while training: `device` (GPU memory), `host`, or `auto` by free memory."""
    embed_key: str | None = None
    """obsm key holding control embeddings to use as they are; none computes them."""
    counts: str = "auto"
    """`raw`, `log1p` or `auto` (detected per file and recorded)."""
    target_sum: float = 10_000.0
    """Library size that raw counts are scaled to before log1p."""
    missing_features: str = "refuse"
    """Perturbations without a feature vector: `refuse`, or `drop` (listed)."""
    gene_list: str | None = None
    """Text file, one output gene a line; none takes the genes common to all files."""
    val_fraction: float = 0.1
    """Share of training perturbations held out where the split file names no val."""


@dataclass(frozen=True)
class DataConfig:
    kwargs: DataKwargs = field(default_factory=DataKwargs)
    cache_dir: str = "~/.cache/sesttune"
    """Cell stores and embeddings, content-addressed and shared by every sweep."""


@dataclass(frozen=True)
class ModelKwargs:
    input_dim: int | None = 18_080
    """Genes of the cell store, checked against the data; null takes the data's."""
    output_dim: int | None = 18_080
    """Genes predicted; must equal `input_dim`; null takes the data's."""
    pert_dim: int | None = 5_120
    """Width of a feature vector, checked against the data; null takes the data's."""
    hidden_dim: int = 672
    """Width of the ST head; 672 gives 50.0M parameters with SE-600M. A multiple of `n_heads`."""
    n_layers: int = 4
    n_heads: int = 8
    """Of the head's set transformer, as `n_layers`."""
    dropout: float = 0.1
    st_cell_set_len: int = 128
    """Cells in a cell set."""
    loss: str = "energy"
    """`energy`, `sinkhorn` or `mse`."""
    se_model_path: str | None = "SE-600M"
    """Folder of the SE model (protein embeddings, checkpoint)."""
    se_checkpoint_path: str | None = "SE-600M/se600m_epoch15.ckpt"
    """The SE checkpoint; null takes the only `.ckpt` of `se_model_path`."""
    se_precision: str = "auto"
    """Of the encoder: `fp32`, `bf16`, or `auto` (bf16 on a GPU that has it)."""
    se_min_matched: float = 0.2
    """Refuse files where the encoder knows a smaller share of the genes."""


@dataclass(frozen=True)
class ModelConfig:
    kwargs: ModelKwargs = field(default_factory=ModelKwargs)
    checkpoint: str | None = None
    """Continue from this training checkpoint: step, optimizer, sampler."""


@dataclass(frozen=True)
class TrainingConfig:
    max_steps: int = 40_000
    """Optimizer steps."""
    batch_size: int = 16
    """Cell sets per forward pass; times `accumulate_grad_batches` per step."""
    lr: float = 1e-4
    lr_schedule: str = "constant"
    """`constant`, `cosine`, or `wsd` (warm-up, stable, decay); to `lr_final_frac` at max_steps."""
    warmup_steps: int = 0
    """Optimizer steps over which lr rises from 0, with any schedule."""
    lr_decay_frac: float = 0.2
    """Share of max_steps, at the end, over which `wsd` decays."""
    lr_final_frac: float = 0.0
    """Where `cosine` and `wsd` end, as a share of lr."""
    weight_decay: float = 0.0
    """Decoupled (AdamW); 0 is Adam."""
    ema_decay: float | None = None
    """Validate and keep an average of the weights with this decay a step, e.g. 0.999."""
    val_check_interval: int = 500
    """Optimizer steps between validations."""
    early_stopping: bool = True
    """False: patience stops no trial."""
    patience: int = 10
    """Validations without improvement before a trial stops."""
    min_delta: float = 0.0
    """Improvement smaller than this does not count."""
    ckpt_every_n_steps: int = 5_000
    """Steps between the checkpoints `step=N.ckpt`."""
    checkpoint_budget_gb: float = 1.5
    """Disk of a trial's checkpoints; `best`, `last` and as many periodic ones as fit are kept."""
    log_every_n_steps: int = 50
    """Steps between looks at the running loss, whether it is NaN."""
    gradient_clip_val: float | None = None
    """Largest norm of the gradient; null clips nothing."""
    accumulate_grad_batches: int = 1
    train_seed: int = 42
    """Of weights, dropout and all cell sets, and of what `val_fraction` holds out."""
    replicate: int = 0
    """Which draw of initial weights, dropout and cell sets; validation sets are those of 0."""
    precision: str = "auto"
    """`32`, `bf16`, or `auto`: bf16 on GPUs that have it, 32 elsewhere."""
    compile: str = "auto"
    """The head by torch.compile: `none`, `default`, `reduce-overhead` (CUDA graphs too), or `auto`:
    a sweep on GPUs measures which is fastest, all else is `none`."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`."""
    profile: bool = False
    """Leave a torch profiler trace and a breakdown of the step time with the trial."""


@dataclass(frozen=True)
class SweepConfig:
    space: str = "default"
    """A YAML file, or the name of one in `search_spaces/`."""
    searcher: str | None = None
    """`gp`, `tpe`, `qmc`, `random` or `grid`; null takes the space file's."""
    num_trials: int | None = None
    """Trials to run; null takes the space file's. A grid runs all its points."""
    max_concurrent: int | None = None
    """Trials at once; null fills the GPUs, or the CPU cores where there is none."""
    gpus_per_trial: int | float | str = 1.0
    """Share of a GPU a trial takes, or `auto` to measure how many fit; ignored without GPUs."""
    cpus_per_trial: float = 1.0
    """Cores of a trial; on a CPU it computes with as many threads."""
    asha: bool = True
    """Stop poor trials early."""
    grace_period: int | None = None
    """Steps before ASHA may stop a trial; null is patience x val_check_interval."""
    reduction_factor: int = 2
    """A rung lets the best 1/reduction_factor pass; the next lies at this many times its steps."""
    rungs: list[int] | None = None
    """Steps at which ASHA compares; null is grace_period x reduction_factor^k."""
    continue_stopped: bool = True
    """Trials that ASHA stopped keep their checkpoint and go on where they pass by later results;
    false stops them for good, and lets the first ones of a rung through uncompared."""
    extend_to: list[int] = field(default_factory=lambda: [50_000, 60_000])
    """Budgets that a winner still falling at its own goes on to, where at most 3 x it; [] never."""
    finalists: int = 3
    """How many of the best are trained to their end and repeated before the winner is named."""
    seeds: int = 3
    """Trainings of each finalist, its first included; 1 names the winner from single runs."""
    try_remedies: bool = False
    """Run the remedy of an unstable winner (a tenth of its lr) as one more trial."""
    time_budget: str | None = None
    """Wall-clock after which nothing new starts and trials stop: `8h`, `90m`, `1d`."""
    gpu_hours: float | None = None
    """GPU-hours after which the same happens (hours of a slot where there is no GPU)."""
    target_val_loss: float | None = None
    """The sweep is done when a trial reaches this."""
    warm_start: str | None = None
    """Name of an earlier sweep on the same data, to learn from and to continue trials of."""
    seed: int = 42
    """Of the points that are proposed."""
    address: str | None = None
    """An existing Ray cluster; null is $RAY_ADDRESS, else one is started on this machine."""

    @property
    def gpu_share(self) -> float:
        """GPUs of a trial as a number; `auto` is a whole one until it has been measured."""
        return 1.0 if isinstance(self.gpus_per_trial, str) else float(self.gpus_per_trial)


@dataclass(frozen=True)
class TrackingConfig:
    uri: str | None = None
    """MLflow store; null is $MLFLOW_TRACKING_URI, else SQLite in `output_dir`."""
    experiment: str = "sesttune"
    """MLflow experiment that the runs are in."""


@dataclass(frozen=True)
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    output_dir: str = "outputs"
    """Sweeps, trainings and the default MLflow store live here."""
    name: str | None = None
    """Name of this sweep or training; null makes one from the date."""
