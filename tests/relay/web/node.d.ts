// What these tests use of Node: its types are a package of their own, and these are all.

declare module "node:test" {
  export function test(name: string, run: () => void): void;
}

declare module "node:assert/strict" {
  export function equal<T>(found: T, expected: T, message?: string): void;
  export function deepEqual<T>(found: T, expected: T, message?: string): void;
}

declare module "node:child_process" {
  export function execFileSync(program: string, args: string[], options: { encoding: "utf8" }): string;
}
