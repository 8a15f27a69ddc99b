//go:build !purego

#include "textflag.h"

// func sumAVX2(b *byte, blocks int) (words uint64)
//
// A 16-bit word w becomes the signed number w - 32768 when its top bit is
// flipped. VPMADDWD with ones then adds words in pairs into 32-bit lanes, which
// hold 2^31/2^16 of such pairs; the caller keeps below that and adds 32768 for
// each word again.
TEXT ·sumAVX2(SB), NOSPLIT, $0-24
	MOVQ b+0(FP), SI
	MOVQ blocks+8(FP), CX

	VPCMPEQW Y14, Y14, Y14
	VPSLLW   $15, Y14, Y15 // 0x8000 in each word
	VPSRLW   $15, Y14, Y14 // 1 in each word
	VPXOR    Y0, Y0, Y0
	VPXOR    Y1, Y1, Y1
	VPXOR    Y2, Y2, Y2
	VPXOR    Y3, Y3, Y3

loop:
	VPXOR    (SI), Y15, Y4
	VPXOR    32(SI), Y15, Y5
	VPXOR    64(SI), Y15, Y6
	VPXOR    96(SI), Y15, Y7
	VPMADDWD Y14, Y4, Y4
	VPMADDWD Y14, Y5, Y5
	VPMADDWD Y14, Y6, Y6
	VPMADDWD Y14, Y7, Y7
	VPADDD   Y4, Y0, Y0
	VPADDD   Y5, Y1, Y1
	VPADDD   Y6, Y2, Y2
	VPADDD   Y7, Y3, Y3
	ADDQ     $128, SI
	DECQ     CX
	JNZ      loop

	// Each lane holds less than 2^16 * blocks, so four of them still fit.
	VPADDD       Y1, Y0, Y0
	VPADDD       Y3, Y2, Y2
	VPADDD       Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPMOVSXDQ    X0, Y0
	VPMOVSXDQ    X1, Y1
	VPADDQ       Y1, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ       X1, X0, X0
	VPSRLDQ      $8, X0, X1
	VPADDQ       X1, X0, X0
	VZEROUPPER
	VMOVQ        X0, AX
	MOVQ         blocks+8(FP), CX
	SHLQ         $21, CX // 64 words to a block, 32768 for each
	ADDQ         CX, AX
	MOVQ         AX, words+16(FP)
	RET
