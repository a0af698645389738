//! Scaled dot-product attention (Vaswani et al., 2017) of packed texts: each token attends to the
//! tokens of its own text, so nothing is padded and nothing masked.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use super::{
    functions::exp2,
    matmul::tiles,
    matrix::{Aligned, Matrix, SharedMatrix},
    simd::{Simd, Task},
    team::{Team, share},
    tile::{MAX_ROWS, tile_buffer},
};

/// Attention heads and how wide they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Heads side by side.
    pub(crate) count: usize,
    /// Columns of a head.
    pub(crate) width: usize,
}

/// Attends. A row of `qkv` holds a token's queries, keys and values, each head after head; the
/// queries are expected to be multiplied with log₂(e) / √width, so that weights are powers of 2.
/// `texts` are ranges of rows. The results go to `context`, head after head. The members of the
/// team share texts and heads.
///
/// Operands of up to 1 give results within 10⁻⁵ of the exact ones, of `bf16` within 0.02: each
/// weight of the softmax is rounded to the operands' type before it multiplies a value.
///
/// Panics when a matrix is too small, or texts do not follow each other.
pub(crate) fn attention<S: Simd>(
    simd: S,
    team: &Team<'_>,
    texts: &[Range<usize>],
    heads: Heads,
    qkv: &Matrix<S::Element>,
    context: &mut Matrix<S::Element>,
    scratches: &Scratches<S>,
) {
    // No two members may write the same row of a head.
    assert!(texts.is_sorted_by(|a, b| a.end <= b.start));
    let (context, size) = (context.shared(), team.size());
    team.run(&|rank| {
        let share = share(rank, size, texts.len() * heads.count);
        let mut scratch = scratches.0[rank].lock().unwrap_or_else(PoisonError::into_inner);
        simd.vectorize(Share { texts, heads, qkv, context, share, scratch: &mut scratch });
    });
}

/// Memory for the members of a team.
pub(crate) struct Scratches<S: Simd>(Vec<Mutex<Scratch<S>>>);

impl<S: Simd> Scratches<S> {
    /// For texts of up to `longest` tokens.
    pub(crate) fn new(members: usize, longest: usize, heads: Heads) -> Self {
        Self((0..members).map(|_| Mutex::new(Scratch::new(longest, heads.width))).collect())
    }
}

/// Memory for one head of one text.
struct Scratch<S: Simd> {
    /// The keys, packed like weights: one column a key.
    keys: Aligned<S::Element>,
    /// The values, packed like weights: one column a component.
    values: Aligned<S::Element>,
    /// Products of a tile of queries with all keys.
    scores: Aligned<f32>,
    /// The powers of the scores.
    weights: Aligned<S::Element>,
}

impl<S: Simd> Scratch<S> {
    fn new(longest: usize, width: usize) -> Self {
        let longest = longest.next_multiple_of(S::WIDTH);
        Self {
            keys: Aligned::new(longest * width.next_multiple_of(S::DEPTH)),
            values: Aligned::new(longest * width.next_multiple_of(S::WIDTH)),
            scores: Aligned::new(longest * S::ROWS),
            weights: Aligned::new(longest * S::ROWS),
        }
    }
}

/// One thread's share of texts and heads.
struct Share<'a, S: Simd> {
    texts: &'a [Range<usize>],
    heads: Heads,
    qkv: &'a Matrix<S::Element>,
    context: SharedMatrix<'a, S::Element>,
    share: Range<usize>,
    scratch: &'a mut Scratch<S>,
}

impl<S: Simd> Task<S> for Share<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let Self { texts, heads, qkv, context, share, scratch } = self;
        for index in share {
            let text = texts[index / heads.count].clone();
            let head = index % heads.count;
            attend(simd, text, heads, head, qkv, context, scratch);
        }
    }
}

/// One head of one text.
#[inline(always)]
fn attend<S: Simd>(
    simd: S,
    text: Range<usize>,
    heads: Heads,
    head: usize,
    qkv: &Matrix<S::Element>,
    context: SharedMatrix<'_, S::Element>,
    scratch: &mut Scratch<S>,
) {
    let Heads { count, width } = heads;
    let first = head * width;
    let row = |token: usize, part: usize| {
        &qkv.row(text.start + token)[part * count * width + first..][..width]
    };
    let length = text.len();
    let key_panels = length.div_ceil(S::WIDTH);
    let padded = key_panels * S::WIDTH;
    let key_steps = width.div_ceil(S::DEPTH);
    let value_steps = length.div_ceil(S::DEPTH);
    let value_panels = width.div_ceil(S::WIDTH);
    let keys = &mut scratch.keys.as_mut_slice()[..padded * key_steps * S::DEPTH];
    let values =
        &mut scratch.values.as_mut_slice()[..value_panels * value_steps * S::WIDTH * S::DEPTH];
    pack_keys::<S>(length, width, |token| row(token, 1), keys);
    pack_values::<S>(length, width, |token| row(token, 2), values);

    let key_panel = key_steps * S::WIDTH * S::DEPTH;
    let value_panel = value_steps * S::WIDTH * S::DEPTH;
    let mut tile = tile_buffer();
    for queries in tiles(length, S::ROWS) {
        let height = queries.len();
        let scores = &mut scratch.scores.as_mut_slice()[..height * padded];
        let weights = &mut scratch.weights.as_mut_slice()[..height * padded];
        let input = &qkv.rows_from(text.start + queries.start)[first..];
        // Keys and values were packed just now: nothing has to be brought into the cache.
        for (panel, keys) in keys.chunks_exact(key_panel).enumerate() {
            let scores = &mut scores[panel * S::WIDTH..];
            simd.tile(input, height, qkv.stride(), keys, key_steps, scores, padded, keys);
        }
        let mut scales = [0.0; MAX_ROWS];
        let rows = scores.chunks_exact_mut(padded).zip(weights.chunks_exact_mut(padded));
        for ((scores, weights), scale) in rows.zip(&mut scales) {
            scores[length..].fill(f32::NEG_INFINITY);
            *scale = 1.0 / powers(simd, scores, weights);
        }
        for (panel, values) in values.chunks_exact(value_panel).enumerate() {
            simd.tile(weights, height, padded, values, value_steps, &mut tile.0, S::WIDTH, values);
            let within = panel * S::WIDTH..width.min((panel + 1) * S::WIDTH);
            let columns = first + within.start..first + within.end;
            let rows = queries.clone().zip(tile.0.chunks_exact(S::WIDTH));
            for ((query, sums), scale) in rows.zip(scales) {
                // SAFETY: no other thread has this text and this head.
                let out = unsafe { context.part(text.start + query, columns.clone()) };
                write_scaled(simd, sums, scale, out);
            }
        }
    }
}

/// Packs keys: one column a key, the steps along their components.
#[inline(always)]
fn pack_keys<'a, S: Simd>(
    length: usize,
    width: usize,
    key: impl Fn(usize) -> &'a [S::Element],
    packed: &mut [S::Element],
) {
    let steps = width.div_ceil(S::DEPTH);
    for (panel, packed) in packed.chunks_exact_mut(steps * S::WIDTH * S::DEPTH).enumerate() {
        let keys = (length - panel * S::WIDTH).min(S::WIDTH);
        if keys < S::WIDTH || !width.is_multiple_of(S::DEPTH) {
            packed.fill(S::Element::default());
        }
        for column in 0..keys {
            let components = key(panel * S::WIDTH + column);
            let steps = packed.chunks_exact_mut(S::WIDTH * S::DEPTH);
            for (step, components) in steps.zip(components.chunks(S::DEPTH)) {
                for (place, &component) in components.iter().enumerate() {
                    step[column * S::DEPTH + place] = component;
                }
            }
        }
    }
}

/// Packs values: one column a component, the steps along the tokens.
#[inline(always)]
fn pack_values<'a, S: Simd>(
    length: usize,
    width: usize,
    value: impl Fn(usize) -> &'a [S::Element],
    packed: &mut [S::Element],
) {
    let steps = length.div_ceil(S::DEPTH);
    if !width.is_multiple_of(S::WIDTH) {
        packed.fill(S::Element::default());
    }
    for step in 0..steps {
        let first = value(step * S::DEPTH);
        let second = (S::DEPTH == 2 && step * 2 + 1 < length).then(|| value(step * 2 + 1));
        for (panel, first) in first.chunks(S::WIDTH).enumerate() {
            let to = &mut packed[(panel * steps + step) * S::WIDTH * S::DEPTH..];
            let to = &mut to[..first.len() * S::DEPTH];
            match second {
                Some(second) => {
                    let second = &second[panel * S::WIDTH..][..first.len()];
                    let pairs = first.iter().zip(second);
                    for (to, (&first, &second)) in to.chunks_exact_mut(2).zip(pairs) {
                        to[0] = first;
                        to[1] = second;
                    }
                }
                None => {
                    for (to, &first) in to.chunks_exact_mut(S::DEPTH).zip(first) {
                        to.fill(S::Element::default());
                        to[0] = first;
                    }
                }
            }
        }
    }
}

/// The powers `2^(score − largest score)`, and their sum.
#[inline(always)]
fn powers<S: Simd>(simd: S, scores: &[f32], powers: &mut [S::Element]) -> f32 {
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for scores in scores.chunks_exact(S::LANES) {
        largest = simd.max(largest, simd.load(scores));
    }
    let largest = simd.splat(simd.largest(largest));
    let mut sum = simd.splat(0.0);
    for (scores, powers) in scores.chunks_exact(S::LANES).zip(powers.chunks_exact_mut(S::LANES)) {
        let power = exp2(simd, simd.sub(simd.load(scores), largest));
        sum = simd.add(sum, power);
        simd.store_elements(power, powers);
    }
    simd.sum(sum)
}

/// Writes sums, each times `scale`, as elements; `out` may be shorter than `sums`.
#[inline(always)]
fn write_scaled<S: Simd>(simd: S, sums: &[f32], scale: f32, out: &mut [S::Element]) {
    let whole = out.len() - out.len() % S::LANES;
    let scales = simd.splat(scale);
    for at in (0..whole).step_by(S::LANES) {
        simd.store_elements(simd.mul(simd.load(&sums[at..]), scales), &mut out[at..]);
    }
    for at in whole..out.len() {
        out[at] = S::element(sums[at] * scale);
    }
}
