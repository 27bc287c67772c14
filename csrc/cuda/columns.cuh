// Eight columns of a row that may begin anywhere: 128 bits at a time where they are aligned and all there.
#pragma once

#include "rows.cuh"

namespace codegen_fast::cuda {

template <class T>
CODEGEN_FAST_DEVICE bool is_vector(const T* row, int first, int columns) {
  return first + kRowVector <= columns && is_aligned(row + first, 16);
}

// Zeros behind the row's end.
template <class T>
CODEGEN_FAST_DEVICE void load_columns(float (&v)[kRowVector], const T* row, int first, int columns) {
  load_elements(v, row, first, columns, is_vector(row, first, columns));
}

template <class T>
CODEGEN_FAST_DEVICE Bytes16 pack_columns(const float (&v)[kRowVector]) {
  return {{pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7])}};
}

// T: f16 or bf16. Nothing behind the row's end.
template <class T>
CODEGEN_FAST_DEVICE void store_columns(T* row, Bytes16 packed, int first, int columns) {
  if (is_vector(row, first, columns)) {
    store16(row + first, packed);
    return;
  }
  for (int i = 0; i < kRowVector; ++i)
    if (first + i < columns) row[first + i] = T{static_cast<uint16_t>(packed.v[i / 2] >> i % 2 * 16)};
}

template <class T>
CODEGEN_FAST_DEVICE void store_columns(T* row, const float (&v)[kRowVector], int first, int columns) {
  if constexpr (sizeof(T) == 2) {
    store_columns(row, pack_columns<T>(v), first, columns);
  } else if (is_vector(row, first, columns)) {
    for (int i = 0; i < kRowVector; i += 4)
      store16(row + first + i, {{float_to_bits(v[i]), float_to_bits(v[i + 1]), float_to_bits(v[i + 2]),
                                 float_to_bits(v[i + 3])}});
  } else {
    for (int i = 0; i < kRowVector; ++i)
      if (first + i < columns) row[first + i] = v[i];
  }
}

}  // namespace codegen_fast::cuda
