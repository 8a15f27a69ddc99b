// Package rivals pins the programs that our benchmarks run beside ours. It is a
// module of its own outside go.work, so that its versions never decide ours.
package rivals
