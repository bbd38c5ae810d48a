// Activations. Included by micro_kernel.h inside its namespace.

inline vec absolute(vec x) { return (vec)((ivec)x & 0x7fffffff); }

// 2^u for u <= 0, relative error below 3e-7 in the relevant range: 2^n times a polynomial in u - n (interpolation at
// Chebyshev nodes).
// NaN that arithmetic yields stays NaN; one with a payload may not.
inline vec exp2_negative(vec u) {
  u = maximum(broadcast(-126.f), u);
  const vec shifted = u + 12582912.f;  // 1.5 * 2^23: rounds u to an integer n, stored in the lowest bits
  const vec f = u - (shifted - 12582912.f);
  vec p = broadcast(0.00133908634f);
  p = p * f + 0.00967603192f;
  p = p * f + 0.0555035711f;
  p = p * f + 0.240221075f;
  p = p * f + 0.693147188f;
  p = p * f + 1.00000008f;
  return (vec)((uvec)p + ((uvec)shifted << 23));  // n is added to the exponent
}

// x/2 (1 + erf(x/sqrt 2)) = max(x, 0) - |x|/2 (1 - erf(|x|/sqrt 2)), of N vectors; the second term is approximated for
// |x| < 5.4, absolute error 2.1e-7, which is also what remains of it at 5.4 (interpolation at Chebyshev nodes). Each step of a
// polynomial waits for the one before, so several vectors are evaluated at once. NaN stays NaN.
#if LANES == 16
// Coefficients, highest power first, of polynomials in the distance from the middle of each of 16 intervals, in intervals.
alignas(64) constexpr float kGeluTail[][16] = {
    {0.000804116891f, 0.000429666834f, -7.01175886e-05f, -0.000406982377f, -0.00046243635f, -0.000317196944f,
     -0.000127635387f, 8.87585315e-07f, 4.92046056e-05f, 4.75027846e-05f, 2.9883231e-05f, 1.45690456e-05f, 5.82783196e-06f,
     1.96461497e-06f, 5.66599795e-07f, 1.41127174e-07f},
    {0.00167554768f, 0.00423105434f, 0.00493898662f, 0.00390218268f, 0.0020791064f, 0.000481699535f, -0.000400179444f,
     -0.000627235742f, -0.00050539599f, -0.000302374829f, -0.000146495047f, -5.9544429e-05f, -2.06804616e-05f,
     -6.20449964e-06f, -1.61939022e-06f, -3.69505017e-07f},
    {-0.0441614576f, -0.0348536782f, -0.020501459f, -0.00683827046f, 0.00219838205f, 0.00586511753f, 0.00576102827f,
     0.00406712294f, 0.0023112148f, 0.00110199989f, 0.000449824496f, 0.000158988798f, 4.90052989e-05f, 1.3235699e-05f,
     3.14299746e-06f, 6.57828593e-07f},
    {0.123737402f, 0.0434270613f, -0.0122798188f, -0.0390847474f, -0.0427963771f, -0.0339266099f, -0.0218610764f,
     -0.0119246459f, -0.00561152445f, -0.00230172463f, -0.000828058459f, -0.000262332265f, -7.33872512e-05f, -1.81643591e-05f,
     -3.9836259e-06f, -7.74947637e-07f},
    {0.0730681866f, 0.155084923f, 0.168247595f, 0.140275463f, 0.0978268161f, 0.0588597693f, 0.0309904348f, 0.0143846897f,
     0.00591102196f, 0.00215583597f, 0.000698967662f, 0.000201671588f, 5.18190063e-05f, 1.18633252e-05f, 2.42075453e-06f,
     4.40386572e-07f},
};

template <int N>
inline void gelu_erf(vec* x) {
  ivec interval[N];
  vec t[N], p[N];
  for (int n = 0; n < N; ++n) {
    const vec intervals = minimum(broadcast(15.999999f), absolute(x[n]) * (16 / 5.4f));
    interval[n] = truncated(intervals);
    t[n] = intervals - __builtin_convertvector(interval[n], vec) - 0.5f;
    p[n] = element_of(kGeluTail[0], interval[n]);
  }
#pragma GCC unroll 4
  for (int i = 1; i <= 4; ++i)
    for (int n = 0; n < N; ++n) p[n] = p[n] * t[n] + element_of(kGeluTail[i], interval[n]);
  for (int n = 0; n < N; ++n) x[n] = maximum(vec{}, x[n]) - p[n];
}
#else
// Coefficients, highest power first, of a polynomial in |x| / 2.7 - 1.
constexpr float kGeluTail[] = {
    -0.0135718863f, 0.00240497151f, 0.0833850577f, -0.0468981713f, -0.208002627f, 0.231261149f, 0.192522198f,
    -0.497793347f, 0.206910565f, 0.378047645f, -0.612720788f, 0.303181827f, 0.141183391f, -0.303594708f, 0.200933293f,
    -0.0666093528f, 0.00936085265f};

template <int N>
inline void gelu_erf(vec* x) {
  vec t[N], p[N];
  for (int n = 0; n < N; ++n) {
    t[n] = minimum(broadcast(5.4f), absolute(x[n])) * (1 / 2.7f) - 1.f;
    p[n] = broadcast(kGeluTail[0]);
  }
#pragma GCC unroll 16
  for (int i = 1; i <= 16; ++i)
    for (int n = 0; n < N; ++n) p[n] = p[n] * t[n] + kGeluTail[i];
  for (int n = 0; n < N; ++n) x[n] = maximum(vec{}, x[n]) - p[n];
}
#endif

// x/2 (1 + tanh(y)) = x / (1 + exp(-2y)), y = sqrt(2/pi) (x + 0.044715 x^3).
inline vec gelu_tanh(vec x) {
  const vec y = (x + 0.044715f * x * x * x) * 2.30220819f;  // 2 sqrt(2/pi) log2(e)
  const vec e = exp2_negative(-absolute(y));
  return x * (y < 0.f ? e : broadcast(1.f)) * reciprocal(1.f + e);
}

template <int N>
inline void activate(Activation activation, vec* x) {
  switch (activation) {
    case kGeluErf: return gelu_erf<N>(x);
    case kGeluTanh:
      for (int n = 0; n < N; ++n) x[n] = gelu_tanh(x[n]);
      return;
    case kRelu:
      for (int n = 0; n < N; ++n) x[n] = maximum(vec{}, x[n]);
      return;
    case kIdentity: return;
  }
}
