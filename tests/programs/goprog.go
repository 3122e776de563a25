// Go: goroutines, channels, deep recursion and the garbage collector.
//
// usage: goprog [SECONDS]
//
// build: go build -o {out} {src}
// build(goprog-stripped): go build -ldflags "-s -w" -o {out} {src}
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

type node struct {
	left, right *node
	value       uint64
}

//go:noinline
func churn(value uint64) uint64 {
	for i := uint64(0); i < 20000; i++ {
		value = value*0x2545f491 + i
	}
	return value
}

//go:noinline
func recurse(depth int, value uint64) uint64 {
	if depth == 0 {
		return churn(value)
	}
	return recurse(depth-1, value) + 1
}

//go:noinline
func grow(depth int) *node {
	if depth == 0 {
		return &node{value: 1}
	}
	return &node{left: grow(depth - 1), right: grow(depth - 1), value: uint64(depth)}
}

func produce(out chan<- uint64) {
	for value := uint64(0); ; value++ {
		out <- churn(value)
	}
}

func consume(in <-chan uint64) {
	for value := range in {
		recurse(200, value)
	}
}

var kept *node

func allocate() {
	for {
		kept = grow(12)
	}
}

func main() {
	numbers := make(chan uint64, 16)
	go produce(numbers)
	go consume(numbers)
	go allocate()
	fmt.Println("ready")
	seconds := 0
	if len(os.Args) > 1 {
		seconds, _ = strconv.Atoi(os.Args[1])
	}
	if seconds == 0 {
		select {}
	}
	time.Sleep(time.Duration(seconds) * time.Second)
}
