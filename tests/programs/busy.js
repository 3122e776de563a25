// JavaScript: functions that the engine compiles while they run.
//
// usage: node --perf-basic-prof busy.js [SECONDS]
'use strict';

function jitted_leaf(value) {
    for (let i = 0; i < 100000; i++) value = (Math.imul(value, 0x2545f491) + i) | 0;
    return value;
}

function jitted_caller(value) {
    return jitted_leaf(value) + jitted_leaf(value + 1);
}

let value = 1;
for (let i = 0; i < 300; i++) value = jitted_caller(value);
console.log('ready');
const seconds = Number(process.argv[2] || 0);
const end = seconds > 0 ? Date.now() + seconds * 1000 : Infinity;
while (Date.now() < end) value = jitted_caller(value);
