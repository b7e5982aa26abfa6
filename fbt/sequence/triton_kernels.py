"""The loop forward and backward as two Triton kernels.

One program takes a sequence through all steps and layers of a chunk. Sequences do not
depend on each other, so programs never wait for one another: a chunk is one launch.
The weights are read again at every step, from the cache that all programs share.

A vector of a step (an input, a query, ...) goes from one product to the next through
memory, because each thread computes a few entries of the result and needs all of the
input. A barrier stands wherever a thread reads what another one has written.

Tensors have the layout of `fbt.sequence.layout`; a matrix W is [K, N], and `product`
computes z W. A matrix may be in half precision: its numbers are converted when they
have been read. Sums are accumulated in the dtype of the activations.
"""

import triton
import triton.language as tl


@triton.jit
def normalise(x, i, d: tl.constexpr):
    """Return x [d] without mean and with variance 1; entries beyond d are zero."""
    centred = tl.where(i < d, x - tl.sum(x, 0) / d, 0.0)
    return centred / tl.sqrt(tl.sum(centred * centred, 0) / d + 1e-5)


@triton.jit
def normalise_backward(grad, x, i, d: tl.constexpr):
    """Return the gradient of x from that of `normalise(x)`."""
    centred = tl.where(i < d, x - tl.sum(x, 0) / d, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / d + 1e-5)
    z = centred * scale
    return scale * (grad - tl.sum(grad, 0) / d - z * (tl.sum(grad * z, 0) / d))


@triton.jit
def gelu(a):
    """Return a times the normal distribution function of a."""
    return a * 0.5 * (1.0 + tl.erf(a * 0.7071067811865476))


@triton.jit
def gelu_slope(a):
    """Return the derivative of `gelu`."""
    density = 0.3989422804014327 * tl.exp(-0.5 * a * a)
    return 0.5 * (1.0 + tl.erf(a * 0.7071067811865476)) + a * density


@triton.jit
def product(
    z,
    w,
    out,
    bias,  # [N] or None
    mask,  # of dropout, [N] or None
    residual,  # [N] or None
    K: tl.constexpr,
    N: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    RELU: tl.constexpr = False,
):
    """Store residual + mask (z W + bias) in `out`, or its ReLU without a residual."""
    dtype = out.dtype.element_ty
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN)
        total = tl.zeros((BN,), dtype)
        for start in range(0, K, BK):
            k = start + tl.arange(0, BK)
            inside = (k[:, None] < K) & (n[None, :] < N)
            row = tl.load(z + k, mask=k < K, other=0.0)
            block = tl.load(w + k[:, None] * N + n[None, :], mask=inside, other=0.0)
            total += tl.sum(row[:, None] * block.to(dtype), 0)
        if bias is not None:
            total += tl.load(bias + n, mask=n < N, other=0.0)
        if RELU:
            total = tl.where(total <= 0.0, 0.0, total)
        if mask is not None:
            total *= tl.load(mask + n, mask=n < N, other=0.0)
        if residual is not None:
            total += tl.load(residual + n, mask=n < N, other=0.0)
        tl.store(out + n, total, mask=n < N)


@triton.jit
def scores(query, shift, keys, table, s, pair, inside):
    """Return the scores of a query and a block of keys, and what they are made of.

    Args:
        query: [H, D].
        shift: [H, D], the query's bias for keys.
        keys: pointers to the keys [H, J, D].
        table: pointers to the relative embeddings of the keys [H, J, D].
        s: pointers to the relative biases of the keys [H, J].
        pair: which heads and keys there are, [H, J].
        inside: the same for numbers of keys, [H, J, D].

    Returns:
        The scores [H, J], the keys and their relative embeddings [H, J, D].
    """
    key = tl.load(keys, mask=inside, other=0.0)
    near = tl.load(table, mask=inside, other=0.0)
    score = (query + shift)[:, None, :] * key
    score = tl.sum(score + query[:, None, :] * near, 2)
    return score + tl.load(s, mask=pair, other=0.0), key, near


# They change from call to call, and a kernel for each would be compiled otherwise.
VARYING = ("T", "B", "past", "span", "first", "stop", "R", "capacity", "width")


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    x,
    m,
    keys,
    values,
    q,
    o,
    y,
    a,
    lse,
    attention_mask,  # None without dropout
    output_mask,
    border,  # the oldest key [B, T] of each row and step, or None
    w_q,
    b_q,
    u,
    table,
    s,
    w_o,
    b_o,
    w_1,
    b_1,
    w_2,
    b_2,
    mix,
    w_kv,
    b_kv,
    scratch,  # [programs, SCRATCH]
    T,
    B,
    past,
    span,
    first,
    stop,
    R,
    capacity,
    width,
    L: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    NORM_MEMORY: tl.constexpr,
    GELU: tl.constexpr,
    SCRATCH: tl.constexpr,  # max(F, 3 d)
    PD: tl.constexpr,  # H D, H, D and F, rounded up to powers of two
    PH: tl.constexpr,
    PW: tl.constexpr,
    PF: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    """Compute the steps [first, stop) of all layers, as `Engine.forward_chunk`."""
    d: tl.constexpr = H * D
    dtype = x.dtype.element_ty
    i, f = tl.arange(0, PD), tl.arange(0, PF)
    h, c = tl.arange(0, PH), tl.arange(0, PW)
    by_head = h[:, None] * D + c[None, :]
    real_head = (h[:, None] < H) & (c[None, :] < D)
    program = tl.program_id(0).to(tl.int64)
    z = scratch + program * SCRATCH
    steps, oldest = stop - first, tl.maximum(0, past + first - span)
    for b in range(program, B, tl.num_programs(0)):
        for t in range(first, stop):
            low, now = tl.maximum(0, past + t - span), past + t
            if border is not None:
                low = tl.maximum(low, tl.load(border + b * T + t).to(tl.int32))
            for l in range(L):
                layer = (l * T + t) * B + b
                saved = (l * steps + t - first) * B + b
                xs, ys = x + layer * d, y + saved * d
                qs, os = q + saved * d, o + saved * d
                mask_o, mask_2 = None, None
                if output_mask is not None:
                    mask_o = output_mask + saved * d
                    mask_2 = output_mask + (L * steps * B + saved) * d
                if l > 0:  # the queries of the first layer are known
                    row = tl.load(xs + i, mask=i < d, other=0.0)
                    tl.store(z + i, normalise(row, i, d), mask=i < d)
                    tl.debug_barrier()
                    product(
                        z, w_q + l * d * d, qs, b_q + l * d, None, None, d, d, BK, BN
                    )
                    tl.debug_barrier()
                if low < now:
                    query = tl.load(qs + by_head, mask=real_head, other=0.0)
                    shift = tl.load(u + l * d + by_head, mask=real_head, other=0.0)
                    score_row = ((h * B + b) * steps + t - first) * L + l
                    top = tl.full((PH,), -float("inf"), dtype)
                    sum_of_p = tl.zeros((PH,), dtype)
                    attended = tl.zeros((PH, PW), dtype)
                    for start in range(low, now, BJ):
                        j = start + tl.arange(0, BJ)
                        pair = (h[:, None] < H) & (j[None, :] < now)
                        inside = pair[:, :, None] & (c[None, None, :] < D)
                        at = ((h[:, None] * B + b) * capacity + j[None, :]) * D
                        at = at[:, :, None] + c[None, None, :]
                        r = (l * H + h[:, None]) * R + R - now + j[None, :]
                        rows = table + r[:, :, None] * D + c[None, None, :]
                        value = tl.load(values + at, mask=inside, other=0.0)
                        score, _, _ = scores(
                            query, shift, keys + at, rows, s + r, pair, inside
                        )
                        score = tl.where(j[None, :] < now, score, -float("inf"))
                        peak = tl.maximum(top, tl.max(score, 1))
                        p, keep = tl.exp(score - peak[:, None]), tl.exp(top - peak)
                        sum_of_p = sum_of_p * keep + tl.sum(p, 1)
                        if attention_mask is not None:
                            weight = score_row[:, None] * width + j[None, :] - oldest
                            p *= tl.load(
                                attention_mask + weight, mask=pair, other=0.0
                            )
                        attended = attended * keep[:, None]
                        attended += tl.sum(p[:, :, None] * value, 1)
                        top = peak
                    attended /= sum_of_p[:, None]
                    tl.store(os + by_head, attended, mask=real_head)
                    tl.store(lse + score_row, top + tl.log(sum_of_p), mask=h < H)
                    tl.debug_barrier()
                    product(
                        os, w_o + l * d * d, ys, b_o + l * d, mask_o, xs, d, d, BK, BN
                    )
                else:  # the first step has no keys, nor has that of a document
                    row = tl.load(xs + i, mask=i < d, other=0.0)
                    tl.store(ys + i, row, mask=i < d)
                    tl.store(os + i, tl.zeros((PD,), dtype), mask=i < d)
                tl.debug_barrier()
                row = tl.load(ys + i, mask=i < d, other=0.0)
                tl.store(z + i, normalise(row, i, d), mask=i < d)
                tl.debug_barrier()
                inner = a + saved * F
                product(
                    z,
                    w_1 + l * d * F,
                    inner,
                    b_1 + l * F,
                    None,
                    None,
                    d,
                    F,
                    BK,
                    BN,
                    RELU=not GELU,
                )
                tl.debug_barrier()
                if GELU:
                    row = tl.load(inner + f, mask=f < F, other=0.0)
                    tl.store(z + f, gelu(row), mask=f < F)
                    tl.debug_barrier()
                    inner = z
                product(
                    inner,
                    w_2 + l * F * d,
                    x + (layer + T * B) * d,
                    b_2 + l * d,
                    mask_2,
                    ys,
                    F,
                    d,
                    BK,
                    BN,
                )
                tl.debug_barrier()
            memory = tl.zeros((PD,), dtype)
            for l in range(L + 1):
                row = x + ((l * T + t) * B + b) * d
                memory += tl.load(mix + l) * tl.load(row + i, mask=i < d, other=0.0)
            tl.store(m + (t * B + b) * d + i, memory, mask=i < d)
            if NORM_MEMORY:
                memory = normalise(memory, i, d)
            tl.store(z + i, memory, mask=i < d)
            tl.debug_barrier()
            product(z, w_kv, z + d, b_kv, None, None, d, 2 * d, BK, BN)
            tl.debug_barrier()
            at = ((i // D) * B + b) * capacity * D + now * D + i % D
            key = tl.load(z + d + i, mask=i < d, other=0.0)
            value = tl.load(z + 2 * d + i, mask=i < d, other=0.0)
            tl.store(keys + at, key, mask=i < d)
            tl.store(values + at, value, mask=i < d)
            tl.debug_barrier()


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    x,
    m,
    keys,
    values,
    q,
    o,
    y,
    a,
    lse,
    attention_mask,  # None without dropout
    output_mask,
    border,  # the oldest key [B, T] of each row and step, or None
    w_q,
    u,
    table,
    s,
    w_o,
    w_1,
    w_2,
    mix,
    w_kv,
    d_f,
    d_y,
    d_q,
    d_a,
    d_kv,
    d_m,
    d_top,
    d_x,
    d_keys,
    d_values,
    d_table,  # [programs, L, H, R, D], or None if not needed
    d_s,  # [programs, L, H, R]
    scratch,  # [programs, d]
    T,
    B,
    past,
    span,
    first,
    stop,
    R,
    capacity,
    width,
    L: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    NORM_MEMORY: tl.constexpr,
    GELU: tl.constexpr,
    PD: tl.constexpr,  # H D, H, D and F, rounded up to powers of two
    PH: tl.constexpr,
    PW: tl.constexpr,
    PF: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    """Run the steps [first, stop) in reverse, as `Engine.backward_chunk`."""
    d: tl.constexpr = H * D
    dtype = x.dtype.element_ty
    i, f = tl.arange(0, PD), tl.arange(0, PF)
    h, c = tl.arange(0, PH), tl.arange(0, PW)
    by_head = h[:, None] * D + c[None, :]
    real_head = (h[:, None] < H) & (c[None, :] < D)
    program = tl.program_id(0).to(tl.int64)
    z = scratch + program * d
    steps, oldest = stop - first, tl.maximum(0, past + first - span)
    for b in range(program, B, tl.num_programs(0)):
        for back in range(steps):
            t = stop - 1 - back
            low, now = tl.maximum(0, past + t - span), past + t
            if border is not None:
                low = tl.maximum(low, tl.load(border + b * T + t).to(tl.int32))
            step = (t - first) * B + b
            # From the step's key and value to its memory.
            own = ((i // D) * B + b) * capacity * D + now * D + i % D
            kv = d_kv + step * 2 * d
            tl.store(kv + i, tl.load(d_keys + own, mask=i < d), mask=i < d)
            tl.store(kv + d + i, tl.load(d_values + own, mask=i < d), mask=i < d)
            tl.debug_barrier()
            product(kv, w_kv, z, None, None, None, 2 * d, d, BK, BN)
            tl.debug_barrier()
            d_memory = tl.load(z + i, mask=i < d, other=0.0)
            if NORM_MEMORY:
                memory = tl.load(m + (t * B + b) * d + i, mask=i < d, other=0.0)
                d_memory = normalise_backward(d_memory, memory, i, d)
            tl.store(d_m + step * d + i, d_memory, mask=i < d)
            g = tl.load(d_top + (t * B + b) * d + i, mask=i < d, other=0.0)
            g += tl.load(mix + L) * d_memory
            for down in range(L):
                l = L - 1 - down
                saved = (l * steps + t - first) * B + b
                xs, ys = x + ((l * T + t) * B + b) * d, y + saved * d
                qs, os = q + saved * d, o + saved * d
                # Feed-forward.
                grad = g
                if output_mask is not None:
                    drop_f = output_mask + (L * steps * B + saved) * d
                    grad *= tl.load(drop_f + i, mask=i < d, other=0.0)
                tl.store(d_f + saved * d + i, grad, mask=i < d)
                tl.debug_barrier()
                inner = d_a + saved * F
                product(
                    d_f + saved * d,
                    w_2 + l * d * F,
                    inner,
                    None,
                    None,
                    None,
                    d,
                    F,
                    BK,
                    BN,
                )
                tl.debug_barrier()
                before = tl.load(a + saved * F + f, mask=f < F, other=0.0)
                grad_a = tl.load(inner + f, mask=f < F, other=0.0)
                if GELU:
                    grad_a *= gelu_slope(before)
                else:
                    grad_a = tl.where(before <= 0.0, 0.0, grad_a)
                tl.store(inner + f, grad_a, mask=f < F)
                tl.debug_barrier()
                product(inner, w_1 + l * F * d, z, None, None, None, F, d, BK, BN)
                tl.debug_barrier()
                row = tl.load(ys + i, mask=i < d, other=0.0)
                grad = tl.load(z + i, mask=i < d, other=0.0)
                g += normalise_backward(grad, row, i, d)
                # Attention.
                if low < now:
                    grad = g
                    if output_mask is not None:
                        drop_y = output_mask + saved * d
                        grad *= tl.load(drop_y + i, mask=i < d, other=0.0)
                    tl.store(d_y + saved * d + i, grad, mask=i < d)
                    tl.debug_barrier()
                    product(
                        d_y + saved * d,
                        w_o + l * d * d,
                        z,
                        None,
                        None,
                        None,
                        d,
                        d,
                        BK,
                        BN,
                    )
                    tl.debug_barrier()
                    d_o = tl.load(z + by_head, mask=real_head, other=0.0)
                    attended = tl.load(os + by_head, mask=real_head, other=0.0)
                    query = tl.load(qs + by_head, mask=real_head, other=0.0)
                    shift = tl.load(u + l * d + by_head, mask=real_head, other=0.0)
                    score_row = ((h * B + b) * steps + t - first) * L + l
                    log_sum = tl.load(lse + score_row, mask=h < H, other=0.0)
                    mean = tl.sum(d_o * attended, 1)
                    grad_q = tl.zeros((PH, PW), dtype)
                    for start in range(low, now, BJ):
                        j = start + tl.arange(0, BJ)
                        pair = (h[:, None] < H) & (j[None, :] < now)
                        inside = pair[:, :, None] & (c[None, None, :] < D)
                        at = ((h[:, None] * B + b) * capacity + j[None, :]) * D
                        at = at[:, :, None] + c[None, None, :]
                        r = (l * H + h[:, None]) * R + R - now + j[None, :]
                        rows = table + r[:, :, None] * D + c[None, None, :]
                        value = tl.load(values + at, mask=inside, other=0.0)
                        score, key, near = scores(
                            query, shift, keys + at, rows, s + r, pair, inside
                        )
                        p = tl.where(pair, tl.exp(score - log_sum[:, None]), 0.0)
                        d_p = tl.sum(d_o[:, None, :] * value, 2)
                        kept = p
                        if attention_mask is not None:
                            weight = score_row[:, None] * width + j[None, :] - oldest
                            drop = tl.load(
                                attention_mask + weight, mask=pair, other=0.0
                            )
                            kept, d_p = p * drop, d_p * drop
                        d_score = p * (d_p - mean[:, None])
                        grad_q += tl.sum(d_score[:, :, None] * (key + near), 1)
                        more = d_score[:, :, None] * (query + shift)[:, None, :]
                        more += tl.load(d_keys + at, mask=inside, other=0.0)
                        tl.store(d_keys + at, more, mask=inside)
                        more = kept[:, :, None] * d_o[:, None, :]
                        more += tl.load(d_values + at, mask=inside, other=0.0)
                        tl.store(d_values + at, more, mask=inside)
                        if d_table is not None:
                            at = program * L * H * R + r
                            more = tl.load(d_s + at, mask=pair, other=0.0)
                            tl.store(d_s + at, more + d_score, mask=pair)
                            at = at[:, :, None] * D + c[None, None, :]
                            more = d_score[:, :, None] * query[:, None, :]
                            more += tl.load(d_table + at, mask=inside, other=0.0)
                            tl.store(d_table + at, more, mask=inside)
                    tl.store(d_q + saved * d + by_head, grad_q, mask=real_head)
                    tl.debug_barrier()
                    product(
                        d_q + saved * d,
                        w_q + l * d * d,
                        z,
                        None,
                        None,
                        None,
                        d,
                        d,
                        BK,
                        BN,
                    )
                    tl.debug_barrier()
                    row = tl.load(xs + i, mask=i < d, other=0.0)
                    grad = tl.load(z + i, mask=i < d, other=0.0)
                    g += normalise_backward(grad, row, i, d)
                g += tl.load(mix + l) * d_memory
            tl.store(d_x + (t * B + b) * d + i, g, mask=i < d)
            tl.debug_barrier()
