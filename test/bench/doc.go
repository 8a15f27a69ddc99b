// Package bench measures whole systems side by side on this machine: our
// workers, wireguard-go and strongSwan's kernel-libipsec, each between two
// namespaces, interleaved in one run. Figures are ratios of one run; absolute
// ones are of this machine and this moment.
package bench
