/* The contract of the native cores: flat C, raw pointers, sizes and strides; no torch, no Python.
 *
 * Every entry returns 0, or a status with a sentence in gmk_last_error() (kept per thread). Pointers are borrowed for
 * the call. Strides and sizes are in elements, 64 bits wide. Outputs are contiguous and must not overlap inputs.
 * Entries of the CUDA core end in _cuda and take the stream to run on. */
#ifndef GMK_ABI_H
#define GMK_ABI_H

#include <stdint.h>

#if defined(__GNUC__)
#define GMK_API __attribute__((visibility("default")))
#else
#define GMK_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum gmk_dtype { GMK_F32 = 0, GMK_F64 = 1, GMK_F16 = 2, GMK_BF16 = 3 };

/* One operand of a row-wise operator: element i of sample b is at
 * data[b * batch + (i / sizes.inner) * outer + (i % sizes.inner) * inner]. */
typedef struct {
  void* data;
  int32_t dtype;
  int64_t batch, outer, inner;
} gmk_rows;

typedef struct {
  int64_t batch, outer, inner;
} gmk_sizes;

/* ---- coupling ---------------------------------------------------------------------------------------------------- */

enum gmk_scale_map {
  GMK_EXP = 0,
  GMK_TANH = 1,
  GMK_ATAN = 2,
  GMK_SIGMOID = 3,
  GMK_RECIPROCAL_SIGMOID = 4,
  GMK_SOFTPLUS = 5,
  GMK_SOFT_CLIP = 6
};

typedef struct {
  gmk_sizes sizes;
  gmk_rows x, log_scale, shift, grad_y, v_x, v_s; /* inputs; unused ones have data == NULL */
  const void* grad_logdet;                        /* (batch), in the wide dtype */
  const uint8_t* mask;                            /* (outer * inner) contiguous, or NULL */
  const void* inner;                              /* tanh(log_scale), ... as out_inner had it, or NULL */
  void *out_x, *out_s, *out_y;                    /* contiguous, in the dtypes of x, log_scale and x */
  void* out_logdet;                               /* (batch), in the wide dtype: float64 if x or log_scale is */
  void* out_inner;                                /* contiguous, in the wide dtype, or NULL; of maps that have one */
  int32_t scale_map, inverse;
  double clamp;
} gmk_affine_coupling_args;

/* y, logdet -> out_y, out_logdet; and out_inner, if there is one */
GMK_API int gmk_affine_coupling(const gmk_affine_coupling_args* args);
/* dx, ds -> out_x, out_s, from grad_y and grad_logdet */
GMK_API int gmk_affine_coupling_backward(const gmk_affine_coupling_args* args);
/* gradients of <v_x, dx> + <v_s, ds> by x, s, grad_y, grad_logdet -> out_x, out_s, out_y, out_logdet */
GMK_API int gmk_affine_coupling_double_backward(const gmk_affine_coupling_args* args);

typedef struct {
  int64_t batch, dim, flows;
  int32_t dtype;
  const void *z, *u, *w, *b;         /* (batch, dim), (flows, dim), (flows, dim), (flows); contiguous, one dtype */
  const void *grad_z, *grad_logdet;  /* (batch, dim) in that dtype, (batch) in the wide dtype */
  const void *v_z, *v_u, *v_w, *v_b; /* cotangents of the gradients, shaped and typed like z, u, w, b */
  void *out_z, *out_u, *out_w, *out_b, *out_grad_z, *out_logdet;
} gmk_planar_args;

GMK_API int gmk_planar_flow(const gmk_planar_args* args);
GMK_API int gmk_planar_flow_backward(const gmk_planar_args* args);
GMK_API int gmk_planar_flow_double_backward(const gmk_planar_args* args);

/* ---- minibatch --------------------------------------------------------------------------------------------------- */

typedef struct {
  int64_t batch, kernels, dim;
  int32_t dtype;
  const void* m; /* element (i, b, c) at m[i * stride_i + b * stride_b + c * stride_c] */
  int64_t stride_i, stride_b, stride_c;
  const void* grad; /* (batch, kernels) contiguous */
  const void* v;    /* (batch, kernels, dim) contiguous: cotangent of the gradient */
  void* out;        /* (batch, kernels) */
  void* out_m;      /* (batch, kernels, dim) */
} gmk_minibatch_args;

GMK_API int gmk_minibatch_discrimination(const gmk_minibatch_args* args);                 /* -> out */
GMK_API int gmk_minibatch_discrimination_backward(const gmk_minibatch_args* args);        /* -> out_m */
GMK_API int gmk_minibatch_discrimination_double_backward(const gmk_minibatch_args* args); /* -> out, out_m */

/* ---- penalty ----------------------------------------------------------------------------------------------------- */

typedef struct {
  gmk_sizes sizes;
  gmk_rows a, b;      /* samples, or the gradients; b is for interpolation only */
  const void* weight; /* (batch) in the wide dtype: a factor of the direction, or NULL */
  void* out;          /* contiguous, in the dtype of a; NULL if no direction is wanted */
  void* out_penalty;  /* (batch) in the wide dtype, or NULL */
  int64_t first, key[2];
  double target;
  int32_t one_sided;
} gmk_penalty_args;

GMK_API int gmk_random_interpolate(const gmk_penalty_args* args); /* -> out */
GMK_API int gmk_norm_penalty(const gmk_penalty_args* args);       /* -> out, out_penalty */

/* ---- virtual batch norm ------------------------------------------------------------------------------------------ */

/* What all examples share comes in this order: mean, var, weight, bias; (channels) each, contiguous, in the wide
 * dtype. The strides of x, grad and v_x are over (batch, channel, position), or (batch, -, channel) of one position. */
typedef struct {
  int64_t batch, channels, positions;
  gmk_rows x, grad, v_x; /* one dtype */
  const void* shared[4];
  const void* v_shared[4]; /* cotangents of their gradients */
  void *out, *out_grad;    /* contiguous, in the dtype of x */
  void* out_shared[4];     /* NULL where not wanted */
  double own, eps;         /* the share of an example's own statistics */
} gmk_virtual_norm_args;

GMK_API int gmk_virtual_batch_norm(const gmk_virtual_norm_args* args); /* -> out */
/* gradients by x and the shared -> out, out_shared */
GMK_API int gmk_virtual_batch_norm_backward(const gmk_virtual_norm_args* args);
/* gradients of <v_x, dx> + <v_shared, dshared> by x, grad and the shared -> out, out_grad, out_shared */
GMK_API int gmk_virtual_batch_norm_double_backward(const gmk_virtual_norm_args* args);

/* ---- gaussian ---------------------------------------------------------------------------------------------------- */

typedef struct {
  gmk_sizes sizes;
  gmk_rows mu, logvar, grad_z, v_mu, v_logvar; /* one dtype; unused ones have data == NULL */
  const void* grad_kl;                         /* (batch), in the wide dtype: float64 if mu is, else float32 */
  const int64_t* key;                          /* (seed, offset) */
  int64_t first;                               /* logical index of the batch's first sample */
  double beta, free_bits;                      /* free_bits is -inf where there are none */
  void *out_mu, *out_logvar, *out_z;           /* contiguous, in the dtype of mu */
  void* out_kl;                                /* (batch), in the wide dtype */
} gmk_reparameterize_args;

/* z, kl -> out_z, out_kl */
GMK_API int gmk_reparameterize_kl(const gmk_reparameterize_args* args);
/* gradients by mu, logvar -> out_mu, out_logvar */
GMK_API int gmk_reparameterize_kl_backward(const gmk_reparameterize_args* args);
/* gradients of <v_mu, dmu> + <v_logvar, dlogvar> by mu, logvar, grad_z, grad_kl -> out_mu, out_logvar, out_z, out_kl */
GMK_API int gmk_reparameterize_kl_double_backward(const gmk_reparameterize_args* args);

typedef struct {
  gmk_sizes sizes;
  gmk_rows location, logvar, x, weight, v_location,
      v_logvar;       /* location: logits or mean; NULL: unused, 0 or weight 1 */
  const void* grad;   /* (batch), in the wide dtype: float64 if an operand is */
  void* out_location; /* contiguous, in location_dtype */
  void* out_logvar;   /* contiguous, in the dtype of logvar */
  void* out;          /* (batch), in the wide dtype */
  int32_t location_dtype;
  int64_t x_samples, weight_samples; /* how many samples in turn have one row of them */
} gmk_likelihood_args;

/* log-likelihoods -> out */
GMK_API int gmk_bernoulli_log_likelihood(const gmk_likelihood_args* args);
GMK_API int gmk_gaussian_log_likelihood(const gmk_likelihood_args* args);
/* gradients by location, logvar -> out_location, out_logvar */
GMK_API int gmk_bernoulli_log_likelihood_backward(const gmk_likelihood_args* args);
GMK_API int gmk_gaussian_log_likelihood_backward(const gmk_likelihood_args* args);
/* gradients of <v_location, dlocation> + <v_logvar, dlogvar> by location, logvar, grad -> out_location, out_logvar, out
 */
GMK_API int gmk_bernoulli_log_likelihood_double_backward(const gmk_likelihood_args* args);
GMK_API int gmk_gaussian_log_likelihood_double_backward(const gmk_likelihood_args* args);

/* ---- autoregressive ---------------------------------------------------------------------------------------------- */

typedef struct {
  int64_t batch, channels, height, width; /* of the images */
  int64_t features, hidden, outputs;      /* h or C; channels between the last two products, and after them */
  int64_t layers;                         /* how many kernels: with the first one of a PixelCNN */
  int64_t first;                          /* logical index of the batch's first image */
  int32_t dtype, gated, groups, head, levels;
  double temperature;
  const int64_t* kernels;
  const void *parameters, *values, *condition; /* flat in their order; (levels); (batch, layers, ...) or NULL */
  const int64_t* key;                          /* (seed, offset) */
  const uint8_t* mask;                         /* (batch, height, width), or NULL: what the image holds already */
  int64_t row_begin, row_end;                  /* rows to draw; those before have been, with the same state */
  void* state;                                 /* *state_bytes of memory; NULL: only say how much is needed */
  int64_t* state_bytes;
  int64_t* image; /* (batch, channels, height, width) */
} gmk_pixelcnn_args;

GMK_API int gmk_pixelcnn_sample(const gmk_pixelcnn_args* args);

enum gmk_wavenet_head { GMK_WAVENET_CATEGORICAL = 0, GMK_WAVENET_MIXTURE = 1, GMK_WAVENET_GAUSSIAN = 2 };

typedef struct {
  int64_t batch, time, inputs, residual, gate, skip, hidden, outputs, first_kernel, kernel, layers, local_channels;
  int64_t first;        /* logical number of the batch's first row */
  int32_t dtype;        /* float32 or float64 */
  int32_t head, levels; /* levels of a sample; 0 for real ones */
  double temperature;
  const int64_t* dilations;
  const void* parameters;   /* weight and bias in turn: first; dilated, mix of every layer; head, output */
  const void* values;       /* (levels): what the network sees of each, where inputs is 1 */
  const void* condition;    /* (batch, layers, 2 gate), or NULL */
  const void* local;        /* (batch, time, local_channels), or NULL */
  const void* local_weight; /* (layers, 2 gate, local_channels), or NULL */
  const int64_t* key;       /* (seed, offset) */
  int64_t held;             /* samples that are given */
  int64_t begin, end;       /* the times to go through: from 0, or on with the same state */
  void* state;              /* *state_bytes of memory; NULL: only say how much is needed */
  int64_t* state_bytes;
  void* out; /* (batch, time): int64 levels, or real samples */
} gmk_wavenet_args;

GMK_API int gmk_wavenet_sample(const gmk_wavenet_args* args);

typedef struct {
  int64_t batch, features, layers;                /* layers: how many places hidden units have */
  int32_t dtype, residual, activation, scale_map; /* float32 or float64 */
  double clamp;
  const int64_t *widths, *degrees;    /* (layers); of all hidden units, ascending in each place */
  const void *parameters, *condition; /* flat in their order; (batch, widths[0]), or NULL */
  const void *x, *grad_x,
      *grad_logdet;         /* (batch, features) to be inverted, or the solution; (batch, features); (batch) */
  void *out_x, *out_logdet; /* the solution, or the gradient by z; (batch) */
  void *out_parameters, *out_condition; /* flat; (batch, widths[0]) */
} gmk_made_args;

enum gmk_made_activation { GMK_MADE_RELU = 0, GMK_MADE_TANH = 1 };

GMK_API int gmk_made_inverse(const gmk_made_args* args);          /* -> out_x, out_logdet */
GMK_API int gmk_made_inverse_backward(const gmk_made_args* args); /* -> out_x, out_parameters, out_condition */

/* ---- random ------------------------------------------------------------------------------------------------------ */

typedef struct {
  int64_t count, start; /* elements start .. start + count of the stream */
  uint64_t seed, offset;
  int32_t dtype; /* of out and p; gmk_random_bits writes int64 */
  const void* p; /* probabilities, contiguous (Bernoulli) */
  void* out;
} gmk_random_args;

GMK_API int gmk_random_bits(const gmk_random_args* args);
GMK_API int gmk_random_uniform(const gmk_random_args* args);
GMK_API int gmk_random_normal(const gmk_random_args* args);
GMK_API int gmk_random_bernoulli(const gmk_random_args* args);

/* The CUDA core reads the key (seed, offset) from device memory, so that a captured graph sees a new key at each
 * replay. */
GMK_API int gmk_random_bits_cuda(const gmk_random_args* args, const int64_t* key, void* stream);
GMK_API int gmk_random_uniform_cuda(const gmk_random_args* args, const int64_t* key, void* stream);
GMK_API int gmk_random_normal_cuda(const gmk_random_args* args, const int64_t* key, void* stream);
GMK_API int gmk_random_bernoulli_cuda(const gmk_random_args* args, const int64_t* key, void* stream);

/* ---- gibbs: machines with all units connected -------------------------------------------------------------------- */

typedef struct {
  int64_t batch, units;
  int32_t dtype;
  const void *x, *weight, *bias, *beta; /* (batch, units), (units, units), (units), (batch); contiguous, one dtype */
  const uint8_t* clamp;                 /* (batch, units) contiguous, or NULL */
  const int64_t* order;                 /* the unit of each column, as the random stream counts them; or NULL */
  const int64_t* key;                   /* (seed, offset) */
  int64_t first, sweeps;                /* logical index of the batch's first chain */
  int32_t spin;                         /* states are -1 and 1, else 0 and 1 */
  void* out;                            /* (batch, units) */
  int64_t* used;                        /* (batch), recall only: sweeps that changed the pattern */
} gmk_boltzmann_args;

GMK_API int gmk_boltzmann_gibbs(const gmk_boltzmann_args* args);
GMK_API int gmk_hopfield_recall(const gmk_boltzmann_args* args);

typedef struct {
  int64_t visible, hidden, chains, steps; /* steps: how many betas there are */
  int32_t dtype;
  /* (visible, hidden), (visible), (hidden), (steps) from 0 to 1, (visible); contiguous, one dtype */
  const void *weight, *visible_bias, *hidden_bias, *betas, *base_bias;
  const void* start; /* (chains, visible) to anneal backwards from, or NULL */
  const int64_t* key;
  int64_t first;   /* logical index of the first chain */
  double log_base; /* logarithm of the base's normalising constant */
  void* out;       /* (chains): log-weights */
} gmk_ais_args;

GMK_API int gmk_ais_log_z(const gmk_ais_args* args);

/* ---- gibbs ------------------------------------------------------------------------------------------------------- */

/* A status: the tensors hold values that the operator does not take, such as a state that is neither 0 nor 1. */
enum { GMK_BAD_VALUES = 2 };

typedef struct {
  int64_t chains, visible, hidden, steps, first;
  int32_t dtype, gaussian;                             /* float32 or float64; Gaussian visible units */
  const void *v, *weight, *visible_bias, *hidden_bias; /* (chains, visible), (visible, hidden), ...; contiguous */
  const void* beta;                                    /* (chains), or NULL for 1 */
  const uint8_t* clamp;                                /* (chains, visible), or NULL */
  int64_t clamp_step;                                  /* between its rows: visible, or 0 for one mask */
  const int64_t* key;                                  /* (seed, offset) */
  void *out_v, *out_h;                                 /* (chains, visible), (chains, hidden) */
} gmk_rbm_gibbs_args;

GMK_API int gmk_rbm_gibbs(const gmk_rbm_gibbs_args* args);       /* in the arithmetic of dtype */
GMK_API int gmk_rbm_gibbs_fixed(const gmk_rbm_gibbs_args* args); /* in integers */

typedef struct {
  int64_t chains, visible, hidden, first;
  int32_t dtype, to_visible, gaussian;
  const void *given, *weight, *bias, *beta;
  const int64_t* key;
  void *out_sample, *out_mean; /* (chains, hidden), or (chains, visible) if to_visible */
} gmk_rbm_conditional_args;

GMK_API int gmk_rbm_conditional(const gmk_rbm_conditional_args* args);

typedef struct {
  int64_t batch, units;
  int32_t dtype;     /* of field and out_field, which are contiguous */
  const void* field; /* (batch, units) */
  const void* grad;  /* (batch), in the wide dtype: float64 if field is, else float32 */
  const void* v;     /* (batch, units) in the dtype of field: cotangent of the gradient */
  void* out;         /* (batch), in the wide dtype */
  void* out_field;   /* (batch, units) */
} gmk_rbm_softplus_args;

GMK_API int gmk_rbm_softplus_sum(const gmk_rbm_softplus_args* args);                 /* -> out */
GMK_API int gmk_rbm_softplus_sum_backward(const gmk_rbm_softplus_args* args);        /* -> out_field */
GMK_API int gmk_rbm_softplus_sum_double_backward(const gmk_rbm_softplus_args* args); /* -> out, out_field */

/* ---- masked_conv ------------------------------------------------------------------------------------------------- */

enum gmk_conv_rule { GMK_MASK_A = 0, GMK_MASK_B = 1, GMK_CAUSAL = 2 };

/* Element (i, c, y, x) of a batch of images is at data[i * n + c * c + y * h + x * w]. */
typedef struct {
  void* data;
  int64_t n, c, h, w;
} gmk_image;

typedef struct {
  int64_t batch, channels, outputs, height, width, kernel_height, kernel_width, dilation, groups;
  int32_t dtype, rule;
  gmk_image x, grad, out;      /* out: the outputs, or the gradient by x (data == NULL: not needed) */
  const void *weight, *bias;   /* (outputs, channels, kernel_height, kernel_width) contiguous; (outputs), or NULL */
  void *out_weight, *out_bias; /* likewise; NULL: not needed */
} gmk_conv_args;

GMK_API int gmk_conv_forward(const gmk_conv_args* args);
GMK_API int gmk_conv_backward(const gmk_conv_args* args); /* -> out, out_weight, out_bias */

/* The convolution gives a and b, the halves of each group's outputs; then comes the gate. */
typedef struct {
  gmk_conv_args conv;       /* its grad, and its out when it is not the gradient by x, have outputs / 2 channels */
  gmk_image cond, out_cond; /* added to a and b: (batch, outputs, height, width), or NULL */
  void* out_label;          /* the gradient by one that is the same for all pixels: (batch, outputs), or NULL */
  void* kept;               /* tanh(a) and sigmoid(b) for backward, in the compute type: like cond; or NULL */
} gmk_gated_conv_args;

GMK_API int gmk_gated_conv_forward(const gmk_gated_conv_args* args);  /* -> conv.out, kept */
GMK_API int gmk_gated_conv_backward(const gmk_gated_conv_args* args); /* -> conv's, out_cond, out_label */

typedef struct {
  gmk_sizes sizes;                               /* of a half */
  gmk_rows a, b, cond_a, cond_b, grad, v_a, v_b; /* one dtype; unused ones have data == NULL */
  gmk_rows out, out_a, out_b;                    /* inner == 1; outer == sizes.inner for all of them, or for none */
} gmk_gate_args;

GMK_API int gmk_gated_activation(const gmk_gate_args* args);                 /* -> out */
GMK_API int gmk_gated_activation_backward(const gmk_gate_args* args);        /* -> out_a, out_b */
GMK_API int gmk_gated_activation_double_backward(const gmk_gate_args* args); /* -> out, out_a, out_b */

/* ---- mlp --------------------------------------------------------------------------------------------------------- */

enum gmk_activation { GMK_RELU = 0, GMK_SILU = 1, GMK_TANH_ACTIVATION = 2 };
enum { GMK_MLP_LAYERS = 4 };

/* A perceptron by itself, or (split != 0) as the conditioner of an affine coupling: then it reads the first split, or
 * the last -split, of `features` numbers, and its output is log-scale and shift of the others. What the coupling gives
 * may be scaled by exp(norm_log_scale) and shifted by norm_shift afterwards, number by number.
 * With `each` (split == 0), samples are pairs: number i reads activation(x[i / rows] + each[i % rows]).
 * With `target` (split == 0), the output is logits, of which `out` gets the derivatives of the log-likelihood: what
 * `grad` is then, to be multiplied by grad_likelihood. */
typedef struct {
  int64_t batch, layers, widths[GMK_MLP_LAYERS + 1]; /* widths[0] is the input's, widths[layers] the output's */
  int32_t dtype, activation;
  const void *x, *grad;                                                /* rows of contiguous numbers, */
  int64_t x_step, grad_step;                                           /* so far apart */
  const void *weight[GMK_MLP_LAYERS], *bias[GMK_MLP_LAYERS];           /* (out, in) contiguous; (out), or NULL */
  void *out, *hidden;                                                  /* hidden: (batch, kept); see below */
  void *out_x, *out_weight[GMK_MLP_LAYERS], *out_bias[GMK_MLP_LAYERS]; /* NULL: not needed */
  int64_t features, split;
  int32_t scale_map, inverse;
  double clamp;
  const void* grad_logdet;                   /* (batch) */
  void* out_logdet;                          /* (batch) */
  const void *norm_log_scale, *norm_shift;   /* (features) both, or NULL both */
  void *out_norm_log_scale, *out_norm_shift; /* likewise; NULL: not needed */
  int64_t rows;                              /* of each; they divide the batch */
  const void* each;                          /* (rows, widths[0]) contiguous, or NULL */
  void* out_each;                            /* likewise; NULL: not needed */
  int64_t target_step, target_samples;       /* so many samples in turn have one target */
  const void* target;                        /* rows of widths[layers] contiguous numbers, or NULL */
  void* out_likelihood;                      /* (batch) */
  const void* grad_likelihood;               /* (batch), or NULL */
} gmk_mlp_args;

/* hidden holds all hidden layers of a sample, before activation or, if that is relu, after it; and for a coupling the
 * output as well. */
GMK_API int gmk_mlp(const gmk_mlp_args* args);          /* -> out, hidden, out_logdet, out_likelihood */
GMK_API int gmk_mlp_backward(const gmk_mlp_args* args); /* hidden -> out_x, out_weight, out_bias, out_norm... */

/* ---- masked_linear ----------------------------------------------------------------------------------------------- */

typedef struct {
  int64_t batch, inputs, outputs;
  gmk_rows x, grad;            /* (batch, inputs), (batch, outputs) as `batch` and `inner` say; float32 or float64 */
  const void *weight, *bias;   /* (outputs, inputs) contiguous; (outputs), or NULL */
  const int64_t* seen;         /* (outputs): how many of the first inputs an output sees, 0 .. inputs */
  int32_t relu;                /* take relu(x) in place of x */
  void* out;                   /* (batch, outputs); or the gradient by x, NULL: not needed */
  void *out_weight, *out_bias; /* likewise */
} gmk_masked_linear_args;

GMK_API int gmk_masked_linear(const gmk_masked_linear_args* args);          /* -> out */
GMK_API int gmk_masked_linear_backward(const gmk_masked_linear_args* args); /* -> out, out_weight, out_bias */

/* ---- the cores themselves ---------------------------------------------------------------------------------------- */

GMK_API const char* gmk_last_error(void);
GMK_API int gmk_cuda_available(void); /* 0 if a GPU can be used */

#ifdef __cplusplus
}
#endif
#endif
