// The numbers in the running text: what stands in each element with a data-show of that name.

const ShownNumbers = (() => {
  "use strict";

  const { count, short, digits, percent, scientific, bytes, fill } = Drawing;

  /** Counts of the model as a whole. With full fine-tuning, everything is trained. */
  function ofModel({ model, trained, share, file }, state) {
    const full = state.method === "full";
    return {
      model: model.name,
      hub: model.hub,
      layers: count(model.layers),
      parameters_short: short(model.parameters),
      trained_short: short(full ? model.parameters : trained),
      share: percent(full ? 1 : share),
      lora_share: percent(share),
      lora_trained: count(trained),
      fewer: digits(model.parameters / trained),
      orders: digits(Math.log10(model.parameters / trained)),
      file: bytes(full ? model.bytes : file),
      bits: short(2 * trained),
    };
  }

  /** Sizes of one adapted matrix. */
  function ofMatrix({ kind, rank }, { alpha, flops }) {
    const { d_in, d_out } = kind;
    return {
      matrix: kind.name,
      rank,
      alpha: digits(alpha),
      scale: digits(alpha / rank),
      d_in: count(d_in),
      d_out: count(d_out),
      whole: count(d_in * d_out),
      factors: count(rank * (d_in + d_out)),
      smaller: digits((d_in * d_out) / (rank * (d_in + d_out))),
      limit: digits((d_in * d_out) / (d_in + d_out)),
      of_a: count(rank * d_in),
      of_b: count(rank * d_out),
      work: percent(flops.lora / flops.full),
      speed: digits(flops.full / flops.lora),
      avoided: digits(flops.product / flops.low_rank),
    };
  }

  /** Memory and storage, and how much less than with full fine-tuning. */
  function ofCosts({ model, memories, formula, trained, flops, file }, state, words) {
    const full = state.method === "full";
    const { tasks } = state;
    const ratio = (n) => fill(words.times, { n: digits(n) });
    const memory = memories[state.method] ?? memories[formula];
    return {
      gpu_bytes: bytes(memory.bytes),
      less_values: ratio(full ? 1 : model.parameters / trained),
      less_memory: ratio(memories.full.bytes / memory.bytes),
      less_work: ratio(full ? 1 : flops.full / flops.lora),
      base: bytes(model.bytes),
      adapter: bytes(file),
      tasks,
      task: state.task + 1,
      as_full: bytes(tasks * model.bytes),
      as_adapters: bytes(model.bytes + tasks * file),
      disk_less: digits((tasks * model.bytes) / (model.bytes + tasks * file)),
    };
  }

  /** What `loractl recommend` says for the answers that are chosen. */
  function ofAdvice({ model }, state, words) {
    const advice = model.recommended[state.question][state.rows];
    return {
      a_rank: advice.rank,
      a_alpha: advice.alpha,
      a_targets: words.targets[advice.target_modules],
      a_rate: scientific(advice.learning_rate),
      a_sweep: advice.sweep.join(", "),
      a_batch: advice.effective_batch,
    };
  }

  function ofExamples(frame, cut, { errors }) {
    return {
      loss: percent(frame.loss),
      grad_a: digits(frame.grad_A),
      grad_b: digits(frame.grad_B),
      frame_step: frame.step,
      cut,
      cut_error: percent(errors[cut]),
    };
  }

  return { ofModel, ofMatrix, ofCosts, ofAdvice, ofExamples };
})();
