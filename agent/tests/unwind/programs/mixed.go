// Goroutines that sort, hash and allocate, for ever.
package main

import (
	"fmt"
	"sort"
	"strings"
)

var sinks [2]int

func work(depth, n int) int {
	if depth > 0 {
		return work(depth-1, n) + 1
	}
	values := make([]int, 100)
	for i := range values {
		values[i] = (i * n) % 101
	}
	sort.Ints(values)
	seen := map[string]int{}
	for i := 0; i < 20; i++ {
		seen[fmt.Sprintf("%d-%d", n, i)] = i
	}
	return len(strings.Repeat("x", values[50]+len(seen)))
}

func spin(sink *int) {
	for n := 0; ; n++ {
		*sink += work(n%10, n)
	}
}

func main() {
	fmt.Println("ready")
	go spin(&sinks[0])
	spin(&sinks[1])
}
