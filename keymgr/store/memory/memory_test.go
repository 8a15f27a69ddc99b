package memory_test

import (
	"testing"

	"github.com/testudo-ipsec/testudo/keymgr/store/memory"
	"github.com/testudo-ipsec/testudo/keymgr/store/storetest"
)

func TestStore(t *testing.T) {
	stores := make(map[string]*memory.Store)
	storetest.Run(t, func(t *testing.T, _ storetest.Store) storetest.Store {
		if stores[t.Name()] == nil {
			stores[t.Name()] = new(memory.Store)
		}
		return stores[t.Name()]
	})
}
