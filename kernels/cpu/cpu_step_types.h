/* What cpu_step.c is given, as c_types.py describes it, and what a step being run has of its own. */

/* Slots of one attention item: fixed, so that results do not depend on the number of threads. */
enum { SLOTS = 128 };
/* Bytes of weights that an item streams, about; output features of an item at most. */
enum { ITEM_BYTES = 16384, ITEM_ROWS = 64 };
/* How far ahead weights are asked for, in bytes. */
enum { PREFETCH = 4096 };
/* Looks at a counter before a waiting thread goes to sleep: some 20 microseconds. */
enum { SPINS = 600 };

/* Sub-layers that rows can do without; keys and values are made of every layer all the same. */
enum { SKIP_ATTENTION = 1, SKIP_MLP = 2 };

enum { FP32, BF16, FP16, Q4_0, Q4_1, Q8_0 };
enum { SILU, GELU }; /* x / (1 + e^-x); GELU by tanh is the same of another e */
#define GENERIC 0 /* macros, for #if */
#define AVX2 1
#define AVX512 2
/* What a low-rank update is first multiplied with comes just before the phase that needs it. */
enum {
    QKV_SHRINK,
    QKV,
    ATTEND,
    RECORD,
    OUTPUT_SHRINK,
    OUTPUT,
    MLP_SHRINK,
    MLP,
    DOWN_SHRINK,
    DOWN,
    NUM_PHASES
};

/* What a low-rank adapter adds to a matrix (N, K): expand (N, rank) times shrink (rank, K). The
 * names are those of arXiv 2310.18547. */
typedef struct {
    const uint8_t *expand; /* (N / 16, rank, 16) of FP32, BF16 or FP16; zeros below the last row */
    int64_t rank, kind;
    int64_t first; /* the row of the layer's shrink matrix where this one's begins */
} Update;

typedef struct {
    const uint8_t *data; /* (rows, row_bytes) */
    const float *bias;   /* (rows,) or NULL */
    const Update *update; /* or NULL */
    int64_t rows, columns, row_bytes, kind;
} Matrix;

typedef struct {
    const float *attention_norm, *mlp_norm; /* (hidden_size,), zeros up to a multiple of 32 */
    const float *attention_norm_bias, *mlp_norm_bias; /* likewise; or NULL */
    const float *query_norm, *key_norm;     /* (head_dim,), of every head; or NULL */
    int64_t window;                         /* slots that a row sees, by position; 0: all */
    Matrix queries, keys, values, output, gate, up, down; /* without a gate its data is NULL */
    /* Of the updates of what a phase multiplies, one below the other; data is NULL without any. */
    Matrix qkv_shrink, output_shrink, mlp_shrink, down_shrink;
} Layer;

typedef struct {
    const Layer *layers;
    const float *norm, *norm_bias; /* as in a layer */
    Matrix head;
    int64_t num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim;
    int64_t interleaved;
    int64_t layer_norm; /* LayerNorm, else RMSNorm */
    int64_t activation; /* SILU or GELU */
    int64_t shrunk_width; /* rows of the largest shrink matrix; 0: there are none */
    double eps;
} Model;

typedef struct {
    float *hidden; /* (n, hidden_size): in, and out again */
    void *unrotated, *rotated, *cached_values; /* (num_layers, num_kv_heads, capacity, head_dim) */
    const int64_t *slots, *row_positions;      /* (n,) */
    const int64_t *slot_positions;             /* (num_slots,) */
    const uint8_t *unseen; /* (n, num_marked): of the last slots, those a row does not see; or NULL */
    const float *cos, *sin;                    /* (n, rotary_half) */
    float *const *weights; /* (num_layers,) pointers to (n, num_slots) or NULL; or NULL */
    const uint8_t *skipped; /* (num_layers,) of SKIP_*: what rows are not put through; or NULL */
    float *logits;         /* (n, vocab): wanted instead of the layers; or NULL */
    void *scratch;
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel or NULL */
    int64_t n, num_slots, capacity, cache_kind, rotary_half, num_threads, isa, num_marked;
} Step;

/* One phase: items done, sleeping threads; cache lines of their own. */
typedef struct {
    _Alignas(64) atomic_int done;
    atomic_int sleepers;
} Phase;

/* Items taken of one thread's share of a phase. */
typedef struct {
    _Alignas(64) atomic_int taken;
} Share;

/* A step being run: where everything lies in the scratch. Strides are in floats. */
typedef struct {
    const Model *model;
    const Step *step;
    Phase *phases;         /* (num_layers, NUM_PHASES) */
    Share *shares;         /* (num_layers, NUM_PHASES, num_threads) */
    atomic_int *head_done; /* (num_layers, num_kv_heads): attention items done */
    atomic_int joined;
    int64_t num_chunks, group, head_stride, hidden_stride, width_stride, inner_stride;
    int64_t chunk_stride; /* num_chunks, rounded up */
    int64_t shrunk_stride;
    int64_t last_position;
    float *hidden;     /* (n, hidden_stride) */
    float *queries;    /* (n, num_heads, head_stride) */
    float *mixed;      /* (n, width_stride) */
    float *active;     /* (n, inner_stride) */
    float *shrunk;     /* (n, shrunk_stride): of the phase that comes next */
    float *parts;      /* (num_heads, n, num_chunks, head_stride) */
    float *part_max;   /* (num_heads, n, chunk_stride) */
    float *part_sum;   /* the same; after merging: what a part's shares are multiplied by */
    float *recorded;   /* (num_heads, n, num_chunks * SLOTS), only for recorded layers */
    float *threads;    /* (num_threads, thread_stride) */
    int64_t thread_stride;
    /* Of the calling thread, in seconds: when its work ended, how long it waited before. */
    const char *caller;
    double ended, waited;
    int64_t own_items, all_items;
} Run;

/* What one thread has for itself. */
typedef struct {
    float *normed; /* (n, hidden_stride) */
    int is_normed; /* for the phase at hand */
    float *tile;   /* (n, tile_stride) twice */
    float *scores; /* (n * group, SLOTS) */
    int64_t tile_stride;
    int index, turn; /* which thread; whose share it takes from, counted from its own */
    Phase *shrinking; /* what the updates of the phase at hand wait for, and its items */
    int num_shrinking;
} Private;
