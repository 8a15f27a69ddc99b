package netio

import "testing"

// FuzzVnetHeader reads any virtio header and writes it back: the kernel and we must
// mean the same by it.
func FuzzVnetHeader(f *testing.F) {
	f.Add(make([]byte, VnetHeaderLen))
	f.Add([]byte{1, 0x81, 66, 0, 0xb4, 5, 34, 0, 16, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, d []byte) {
		if len(d) != VnetHeaderLen {
			return
		}
		o := offloadFrom((*[VnetHeaderLen]byte)(d))
		var b [VnetHeaderLen]byte
		o.put(&b)
		if again := offloadFrom(&b); again != o {
			t.Errorf("%+v became %+v", o, again)
		}
	})
}
