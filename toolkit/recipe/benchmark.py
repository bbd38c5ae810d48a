"""The recipe's `benchmark` section: how accuracy, size and speed of the exported IRs are measured."""

from pydantic import Field

from toolkit.recipe.fields import Count, Position, Section


class PerformanceConfigs(Section):
    """INC's form: cores and instances; benchmark_app's -nthreads and -nstreams."""

    cores_per_instance: Count | None = Field(None, description="threads; default: all cores")
    num_of_instance: Count = Field(1, description="inference streams that run side by side")


class Performance(Section):
    """Latency and throughput by benchmark_app, variants interleaved."""

    warmup: Position = Field(1, description="rounds thrown away before those that count")
    iteration: Count = Field(3, description="rounds over all variants")
    seconds: Count = Field(3, description="length of one benchmark_app run")
    batch_sizes: tuple[Count, ...] = Field((1, 8), min_length=1, description="examples per inference; each is measured")
    sequence_length: Count = Field(128, description="tokens per example, padded")
    configs: PerformanceConfigs = PerformanceConfigs()


class Evaluation(Section):
    """INC's form; accuracy is always measured on the whole dev split."""

    performance: Performance = Performance()


class Benchmark(Section):
    """Accuracy, size and speed of each IR."""

    evaluation: Evaluation = Evaluation()
