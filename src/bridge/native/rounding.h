// Makes the functions behind this line round products and sums one by one: no product is added before
// it is rounded.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif
