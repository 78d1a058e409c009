/* GroupNorm, scale and shift, and SiLU on channels-last bfloat16; called from fused.py. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
/* bfloat16 to float and back, rounding to even */
static inline float load(const uint16_t* p, long i) {
  union {uint32_t u; float f;} v;
  v.u = ((uint32_t)p[i]) << 16;
  return v.f;
}
static inline void store(uint16_t* p, long i, float f) {
  union {uint32_t u; float f;} v;
  v.f = f;
  p[i] = (uint16_t)((v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16);
}

/* the bound keeps exp finite: fast-math's reciprocal of infinity is not a number */
static inline float sigmoid(float y) {
  float bounded = y < -80.0f ? -80.0f : y;
  return 1.0f / (1.0f + expf(-bounded));
}

/* x, out: (n, m, c) bf16; w, b: (c); scale, shift: (n, c) or null; mean, rstd: (n, g) */
void norm_forward(const uint16_t* x, const float* w, const float* b, const float* scale, const float* shift,
                  uint16_t* out, float* mean, float* rstd, long n, long m, long c, long g, float eps, int silu) {
  #pragma omp parallel for
  for (long s = 0; s < n; s++) {
    float* sum = (float*)aligned_alloc(64, (c * 16 + 63) / 64 * 64);
    float* square = sum + c; float* alpha = sum + 2 * c; float* beta = sum + 3 * c;
    memset(sum, 0, c * 8);
    const uint16_t* xs = x + s * m * c; uint16_t* os = out + s * m * c;
    for (long i = 0; i < m; i++) {
      const uint16_t* r = xs + i * c;
      #pragma omp simd
      for (long k = 0; k < c; k++) { float v = load(r, k); sum[k] += v; square[k] += v * v; }
    }
    long d = c / g;
    for (long j = 0; j < g; j++) {
      double a = 0, q = 0;
      for (long k = j * d; k < j * d + d; k++) { a += sum[k]; q += square[k]; }
      double mu = a / (m * d), var = q / (m * d) - mu * mu; if (var < 0) var = 0;
      float rs = (float)(1.0 / sqrt(var + eps));
      mean[s * g + j] = (float)mu; rstd[s * g + j] = rs;
      for (long k = j * d; k < j * d + d; k++) {
        float f = scale ? 1.0f + scale[s * c + k] : 1.0f, h = shift ? shift[s * c + k] : 0.0f;
        alpha[k] = w[k] * rs * f; beta[k] = (b[k] - w[k] * rs * (float)mu) * f + h;
      }
    }
    for (long i = 0; i < m; i++) {
      const uint16_t* r = xs + i * c; uint16_t* o = os + i * c;
      if (silu) {
        #pragma omp simd
        for (long k = 0; k < c; k++) { float y = load(r, k) * alpha[k] + beta[k]; store(o, k, y * sigmoid(y)); }
      } else {
        #pragma omp simd
        for (long k = 0; k < c; k++) store(o, k, load(r, k) * alpha[k] + beta[k]);
      }
    }
    free(sum);
  }
}

/* grad_w, grad_b are per sample (n, c), to be summed by the caller; grad_scale, grad_shift: (n, c) */
void norm_backward(const uint16_t* go, const uint16_t* x, const float* w, const float* b, const float* scale,
                   const float* shift, const float* mean, const float* rstd, uint16_t* gx, float* grad_w,
                   float* grad_b, float* grad_scale, float* grad_shift, long n, long m, long c, long g, int silu) {
  #pragma omp parallel for
  for (long s = 0; s < n; s++) {
    float* P = (float*)aligned_alloc(64, (c * 28 + 63) / 64 * 64);
    float *Q = P + c, *alpha = P + 2 * c, *beta = P + 3 * c, *A = P + 4 * c, *B = P + 5 * c, *C = P + 6 * c;
    memset(P, 0, c * 8);
    const uint16_t* xs = x + s * m * c; const uint16_t* gs = go + s * m * c; uint16_t* ds = gx + s * m * c;
    long d = c / g;
    for (long k = 0; k < c; k++) {
      float mu = mean[s * g + k / d], rs = rstd[s * g + k / d];
      float f = scale ? 1.0f + scale[s * c + k] : 1.0f, h = shift ? shift[s * c + k] : 0.0f;
      alpha[k] = w[k] * rs * f; beta[k] = (b[k] - w[k] * rs * mu) * f + h;
    }
    for (long i = 0; i < m; i++) {
      const uint16_t* r = xs + i * c; const uint16_t* gr = gs + i * c; uint16_t* dr = ds + i * c;
      if (silu) {
        #pragma omp simd
        for (long k = 0; k < c; k++) {
          float v = load(r, k), y = v * alpha[k] + beta[k], z = sigmoid(y);
          float q = load(gr, k) * z * (1.0f + y * (1.0f - z));
          P[k] += q; Q[k] += q * v; store(dr, k, q);
        }
      } else {
        #pragma omp simd
        for (long k = 0; k < c; k++) { float q = load(gr, k); P[k] += q; Q[k] += q * load(r, k); store(dr, k, q); }
      }
    }
    for (long j = 0; j < g; j++) {
      float mu = mean[s * g + j], rs = rstd[s * g + j]; double s1 = 0, s2 = 0;
      for (long k = j * d; k < j * d + d; k++) {
        float f = scale ? 1.0f + scale[s * c + k] : 1.0f, t = rs * (Q[k] - mu * P[k]);
        s1 += w[k] * f * P[k]; s2 += w[k] * f * Q[k];
        grad_w[s * c + k] = f * t; grad_b[s * c + k] = f * P[k];
        if (scale) { grad_scale[s * c + k] = w[k] * t + b[k] * P[k]; grad_shift[s * c + k] = P[k]; }
        A[k] = w[k] * f * rs;
      }
      float e = (float)(-(s2 - s1 * mu) * rs * rs * rs / (m * d)), o = (float)(-e * mu - s1 * rs / (m * d));
      for (long k = j * d; k < j * d + d; k++) { B[k] = e; C[k] = o; }
    }
    for (long i = 0; i < m; i++) {
      const uint16_t* r = xs + i * c; uint16_t* dr = ds + i * c;
      #pragma omp simd
      for (long k = 0; k < c; k++) store(dr, k, load(dr, k) * A[k] + load(r, k) * B[k] + C[k]);
    }
    free(P);
  }
}
